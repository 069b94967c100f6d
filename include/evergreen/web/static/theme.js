// Light or dark as Airflow is: its UI keeps the choice under the key "theme" of this origin.
(() => {
  "use strict";
  const system = matchMedia("(prefers-color-scheme: dark)");
  const apply = () => {
    let chosen = null;
    try {
      chosen = localStorage.getItem("theme");
    } catch {
      chosen = null;
    }
    const dark = chosen === "dark" || (chosen !== "light" && system.matches);
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    document.dispatchEvent(new Event("themechange"));
  };
  if (window !== window.parent) document.documentElement.dataset.framed = "";
  apply();
  addEventListener("storage", (event) => event.key === "theme" && apply());
  system.addEventListener("change", apply);
})();
