-- One row per entity: what was known at its as_of (midnight of the flight's day).
-- `entities` holds the key and as_of; a row of any table counts only when available_at <= as_of.
with flights as (
    select e.*, s.tailnum, s.dest, s.sched_dep_time, s.sched_arr_time, s.distance
    from entities e
    join schedules s using (flight_date, carrier, flight, origin)
    where s.available_at <= e.as_of
),
-- Outcomes of the seven days before each as_of.
past as (
    select
        d.as_of, s.origin, s.carrier, s.dest,
        a.flight_date = d.as_of::date - 1 as yesterday,
        (a.arr_delay > 15)::int as late,
        (a.arr_delay is null)::int as lost
    from (select distinct as_of from entities) d
    join actuals a
        on a.available_at <= d.as_of
        and a.flight_date between d.as_of::date - 7 and d.as_of::date - 1
    join schedules s using (flight_date, carrier, flight, origin)
    where s.available_at <= d.as_of
),
rates as (
    select
        as_of, origin, carrier, dest,
        avg(late) filter (yesterday) as late_1d,
        avg(late) as late_7d,
        avg(lost) filter (yesterday) as lost_1d
    from past
    group by grouping sets ((as_of, origin), (as_of, carrier), (as_of, dest))
),
-- Load and rotation: how busy the hour is, how many legs the plane has flown earlier that day.
hours as (
    select as_of, origin, sched_dep_time // 100 as hour, count(*) as departures
    from flights
    group by all
),
legs as (
    select
        flight_date, carrier, flight, origin,
        row_number() over (partition by as_of, tailnum order by sched_dep_time, carrier, flight, origin) - 1 as earlier_legs
    from flights
    where tailnum is not null
),
sky as (
    select origin, time_hour, available_at, temp, humid, wind_speed, precip, visib
    from weather
),
last_sky as (
    select f.as_of, f.origin, arg_max(struct_pack(temp, humid, wind_speed, precip, visib), w.time_hour) as w
    from (select distinct as_of, origin from flights) f
    join sky w on w.origin = f.origin and w.available_at <= f.as_of and w.time_hour > f.as_of - interval 3 day
    group by all
),
fleet as (
    select d.as_of, p.tailnum, arg_max(struct_pack(p.year, p.seats), p.available_at) as p
    from (select distinct as_of from entities) d
    join planes p on p.available_at <= d.as_of
    group by all
)
select
    f.flight_date, f.carrier, f.flight, f.origin, f.as_of,
    f.carrier as airline,
    f.origin as airport,
    f.dest as destination,
    f.sched_dep_time // 100 + f.sched_dep_time % 100 / 60.0 as dep_hour,
    (f.sched_arr_time // 100 * 60 + f.sched_arr_time % 100
        - f.sched_dep_time // 100 * 60 - f.sched_dep_time % 100 + 1440) % 1440 as planned_minutes,
    f.distance,
    isodow(f.flight_date) as weekday,
    h.departures as hour_departures,
    l.earlier_legs,
    o.late_1d as origin_late_1d,
    o.late_7d as origin_late_7d,
    o.lost_1d as origin_lost_1d,
    c.late_1d as carrier_late_1d,
    c.late_7d as carrier_late_7d,
    d.late_1d as dest_late_1d,
    d.late_7d as dest_late_7d,
    k.w.temp as temp,
    k.w.humid as humid,
    k.w.wind_speed as wind_speed,
    k.w.precip as precip,
    k.w.visib as visib,
    year(f.as_of) - p.p.year as plane_age,
    p.p.seats as seats
from flights f
left join hours h on h.as_of = f.as_of and h.origin = f.origin and h.hour = f.sched_dep_time // 100
left join legs l on l.flight_date = f.flight_date and l.carrier = f.carrier and l.flight = f.flight and l.origin = f.origin
left join rates o on o.as_of = f.as_of and o.origin = f.origin and o.carrier is null and o.dest is null
left join rates c on c.as_of = f.as_of and c.carrier = f.carrier and c.origin is null and c.dest is null
left join rates d on d.as_of = f.as_of and d.dest = f.dest and d.origin is null and d.carrier is null
left join last_sky k on k.as_of = f.as_of and k.origin = f.origin
left join fleet p on p.as_of = f.as_of and p.tailnum = f.tailnum
