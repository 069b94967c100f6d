// The little script of the pages: the fleet's filter and order, the timeline, links out of Airflow's frame.
(() => {
  "use strict";

  // --- fleet: filter and order -------------------------------------------------------------------------------------

  const fleet = document.querySelector("table[data-fleet]");
  if (fleet) {
    const body = fleet.tBodies[0];
    const rows = [...body.rows];
    const search = document.querySelector("[data-filter]");
    const chips = [...document.querySelectorAll("[data-verdict-chip]")];
    const told = document.querySelector("[data-told]");

    const filter = () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      const verdicts = new Set(
        chips.filter((chip) => chip.getAttribute("aria-pressed") === "true").map((chip) => chip.dataset.verdictChip),
      );
      let shown = 0;
      for (const row of rows) {
        const fits = words.every((word) => row.dataset.text.includes(word));
        row.hidden = !(fits && (!verdicts.size || verdicts.has(row.dataset.verdict)));
        shown += row.hidden ? 0 : 1;
      }
      told.textContent = shown === rows.length ? "" : `${shown} of ${rows.length} shown`;
    };
    search.addEventListener("input", filter);
    for (const chip of chips) {
      chip.addEventListener("click", () => {
        chip.setAttribute("aria-pressed", String(chip.getAttribute("aria-pressed") !== "true"));
        filter();
      });
    }
    document.addEventListener("keydown", (event) => {
      if (event.key === "/" && !event.target.closest("input, textarea, select")) {
        event.preventDefault();
        search.focus();
      }
      if (event.key === "Escape" && event.target === search) {
        search.value = "";
        filter();
      }
    });

    const heads = [...fleet.tHead.rows[0].cells];
    const value = (row, column) => {
      const found = row.cells[column].dataset.value ?? "";
      return found !== "" && !Number.isNaN(Number(found)) ? Number(found) : found;
    };
    const order = (column, down) => {
      const sign = down ? -1 : 1;
      rows.sort((one, other) => {
        const [a, b] = [value(one, column), value(other, column)];
        if (a === b) return 0;
        if (a === "") return 1; // what is not known comes last, either way
        if (b === "") return -1;
        return a < b ? -sign : sign;
      });
      body.append(...rows);
      for (const [index, head] of heads.entries()) {
        head.setAttribute("aria-sort", index === column ? (down ? "descending" : "ascending") : "none");
      }
    };
    for (const [index, head] of heads.entries()) {
      head.querySelector("button")?.addEventListener("click", () => {
        const first = head.dataset.first === "down";
        const sorted = head.getAttribute("aria-sort");
        order(index, sorted === "none" ? first : sorted === "ascending");
      });
    }
    filter();
  }

  // --- timeline ----------------------------------------------------------------------------------------------------

  const GLYPHS = {
    training: "○",
    promotion: "▲",
    refusal: "▽",
    rollback: "◀",
    data_fault: "✕",
    approval: "◆",
    retrain_halted: "■",
  };
  const holder = document.querySelector("[data-timeline]");
  if (holder && window.uPlot) timeline(holder);

  function timeline(root) {
    const data = JSON.parse(root.dataset.timeline);
    if (data.days.length < 2) return;
    const times = data.days.map((day) => Date.parse(`${day}T00:00:00Z`) / 1000);
    const place = new Map(data.days.map((day, index) => [day, index]));
    const marks = new Map();
    for (const mark of data.marks) {
      const index = place.get(mark.day);
      marks.set(index, [...(marks.get(index) ?? []), mark]);
    }
    const readout = root.querySelector("[data-readout]");
    const resting = readout.textContent;
    const [low, reference, high] = data.band;
    let charts = [];

    const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
    const dayText = (index) =>
      new Date(times[index] * 1000).toLocaleDateString("en-GB", {
        day: "numeric",
        month: "short",
        year: "numeric",
        timeZone: "UTC",
      });

    const tell = (index) => {
      if (index == null) {
        readout.textContent = resting;
        return;
      }
      const parts = [dayText(index)];
      if (data.auc[index] != null) parts.push(`AUC ${data.auc[index].toFixed(3)} by version ${data.versions[index]}`);
      if (data.drift[index] != null) parts.push(`drift ${data.drift[index].toFixed(2)} × threshold`);
      if (data.verdicts[index]) parts.push(data.verdicts[index]);
      for (const mark of marks.get(index) ?? []) parts.push(`${GLYPHS[mark.kind] ?? "·"} ${mark.text}`);
      readout.textContent = parts.join("  ·  ");
    };

    const drawMarks = (u) => {
      const { ctx } = u;
      const ratio = devicePixelRatio || 1;
      ctx.save();
      ctx.textAlign = "center";
      ctx.textBaseline = "top";
      ctx.font = `${11 * ratio}px system-ui, sans-serif`;
      ctx.lineWidth = ratio;
      for (const [index, found] of marks) {
        const x = Math.round(u.valToPos(times[index], "x", true));
        if (x < u.bbox.left || x > u.bbox.left + u.bbox.width) continue;
        ctx.strokeStyle = colour("--line-strong");
        ctx.setLineDash([2 * ratio, 3 * ratio]);
        ctx.beginPath();
        ctx.moveTo(x, u.bbox.top + 14 * ratio);
        ctx.lineTo(x, u.bbox.top + u.bbox.height);
        ctx.stroke();
        for (const [level, mark] of found.slice(0, 2).entries()) {
          ctx.fillStyle = colour(`--mark-${mark.kind.replaceAll("_", "-")}`) || colour("--ink");
          ctx.fillText(GLYPHS[mark.kind] ?? "·", x, u.bbox.top + level * 13 * ratio);
        }
      }
      ctx.restore();
    };

    const drawBand = (u) => {
      if (low == null || high == null) return;
      const { ctx } = u;
      const [top, bottom] = [u.valToPos(high, "y", true), u.valToPos(low, "y", true)];
      ctx.save();
      ctx.fillStyle = colour("--band");
      ctx.fillRect(u.bbox.left, top, u.bbox.width, bottom - top);
      if (reference != null) {
        const y = Math.round(u.valToPos(reference, "y", true));
        ctx.strokeStyle = colour("--band-line");
        ctx.setLineDash([4, 4]);
        ctx.beginPath();
        ctx.moveTo(u.bbox.left, y);
        ctx.lineTo(u.bbox.left + u.bbox.width, y);
        ctx.stroke();
      }
      ctx.restore();
    };

    const drawThreshold = (u) => {
      const { ctx } = u;
      const y = Math.round(u.valToPos(1, "y", true));
      ctx.save();
      ctx.strokeStyle = colour("--ill");
      ctx.setLineDash([4, 4]);
      ctx.beginPath();
      ctx.moveTo(u.bbox.left, y);
      ctx.lineTo(u.bbox.left + u.bbox.width, y);
      ctx.stroke();
      ctx.restore();
    };

    const axis = () => ({
      stroke: colour("--soft"),
      font: "12px system-ui, sans-serif",
      grid: { stroke: colour("--line"), width: 1 },
      ticks: { show: false },
    });
    const stamps = (_, values) =>
      values.map((value) =>
        new Date(value * 1000).toLocaleDateString("en-GB", { day: "numeric", month: "short", timeZone: "UTC" }),
      );

    const draw = () => {
      for (const chart of charts) chart.destroy();
      const width = root.querySelector("[data-chart]").clientWidth;
      const shared = {
        width,
        tzDate: (stamp) => uPlot.tzDate(new Date(stamp * 1000), "Etc/UTC"),
        legend: { show: false },
        padding: [8, 10, 4, 0],
        cursor: { sync: { key: "timeline" }, points: { size: 7 }, drag: { x: false, y: false } },
      };
      const numbers = data.auc.filter((value) => value != null);
      const bounds = [...numbers, ...[low, high].filter((value) => value != null)];
      const [least, most] = bounds.length ? [Math.min(...bounds), Math.max(...bounds)] : [0, 1];
      const room = Math.max(most - least, 0.02);
      const performance = new uPlot(
        {
          ...shared,
          height: 220,
          scales: { y: { range: () => [least - room * 0.1, most + room * 0.35] } },
          axes: [
            { ...axis(), values: stamps, space: 64, size: 30 },
            { ...axis(), size: 52, values: (_, ticks) => ticks.map((tick) => tick.toFixed(2)) },
          ],
          series: [
            {},
            {
              label: "AUC",
              stroke: colour("--accent"),
              width: 2,
              points: { show: times.length < 60, size: 5, fill: colour("--card") },
            },
          ],
          hooks: { drawClear: [drawBand], draw: [drawMarks], setCursor: [(u) => tell(u.cursor.idx)] },
        },
        [times, data.auc],
        root.querySelector("[data-chart=performance]"),
      );
      const drift = new uPlot(
        {
          ...shared,
          height: 96,
          scales: { y: { range: (_u, _min, max) => [0, Math.max(1.4, (max ?? 0) * 1.1)] } },
          axes: [
            { ...axis(), values: (_, ticks) => ticks.map(() => ""), size: 4, space: 64 },
            { ...axis(), size: 52, space: 26, values: (_, ticks) => ticks.map((tick) => `${tick}×`) },
          ],
          series: [
            {},
            {
              label: "drift",
              stroke: colour("--drift"),
              fill: colour("--drift-fill"),
              width: 1.5,
              points: { show: false },
            },
          ],
          hooks: { draw: [drawThreshold] },
        },
        [times, data.drift],
        root.querySelector("[data-chart=drift]"),
      );
      charts = [performance, drift];
    };

    draw();
    root.dataset.drawn = "";
    document.addEventListener("themechange", draw);
    let width = root.clientWidth;
    new ResizeObserver(() => {
      if (Math.abs(root.clientWidth - width) > 1) {
        width = root.clientWidth;
        draw();
      }
    }).observe(root);

    // the keyboard walks along the dates
    let at = null;
    root.addEventListener("keydown", (event) => {
      const steps = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity };
      if (!(event.key in steps)) return;
      event.preventDefault();
      at = Math.min(Math.max((at ?? times.length) + steps[event.key], 0), times.length - 1);
      charts[0].setCursor({ left: charts[0].valToPos(times[at], "x"), top: 20 });
      tell(at);
    });
    root.addEventListener("focusout", () => {
      at = null;
      tell(null);
    });
  }

  // --- the newest dates of the heat map are at its right end --------------------------------------------------------

  for (const heat of document.querySelectorAll("table.heat")) heat.parentElement.scrollLeft = heat.scrollWidth;

  // --- links to Airflow itself leave the frame ---------------------------------------------------------------------

  if (window !== window.parent) {
    document.addEventListener("click", (event) => {
      const link = event.target.closest("a[data-airflow]");
      if (!link) return;
      try {
        const out = window.parent.document.createElement("a");
        out.href = link.href;
        event.preventDefault();
        out.click();
      } catch {
        // another origin frames us: the link opens in the frame
      }
    });
  }
})();
