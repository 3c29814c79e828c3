// Draws the charts of a page with ECharts. The element #data holds everything as JSON: `axes`, sets
// of places along the horizontal axis, and `charts` by the id of the element that shows them.
"use strict";
(() => {
  const { axes, charts } = JSON.parse(document.getElementById("data").textContent);
  const PALETTE = 8;
  const FONT = getComputedStyle(document.body).fontFamily;
  const drawn = new Map(); // id of an element -> its chart
  const formats = {
    step: (x) => short(x, 0),
    tokens: (x) => short(x, 1),
    seconds: duration,
    flops: (x) => short(x, 1),
  };
  const titles = { step: "step", tokens: "tokens", seconds: "training time", flops: "FLOPs" };
  let along = document.querySelector("input[name=along]:checked")?.value ?? "step";

  function color(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  }

  function short(value, decimals) {
    for (const [size, letter] of [[1e24, "Y"], [1e21, "Z"], [1e18, "E"], [1e15, "P"], [1e12, "T"],
      [1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
      if (Math.abs(value) >= size) return trimmed((value / size).toFixed(2)) + letter;
    }
    return trimmed(value.toFixed(decimals));
  }

  function trimmed(text) {
    return text.includes(".") ? text.replace(/\.?0+$/, "") : text;
  }

  function duration(seconds) {
    if (seconds < 120) return `${trimmed(seconds.toFixed(1))} s`;
    if (seconds < 7200) return `${trimmed((seconds / 60).toFixed(1))} min`;
    return `${trimmed((seconds / 3600).toFixed(1))} h`;
  }

  function number(value, percent) {
    if (percent) return `${trimmed((100 * value).toPrecision(3))}%`;
    const size = Math.abs(value);
    if (size >= 1e4) return short(value, 1);
    if (size && size < 1e-3) return value.toExponential(1);
    return trimmed(value.toPrecision(4));
  }

  // The place of a point along the chosen axis, or along the first one that the set has.
  function kind(set) {
    return axes[set][along] ? along : Object.keys(axes[set])[0];
  }

  // Texts become text nodes, never markup: they may come from a corpus or a model.
  function element(tag, text, style) {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    Object.assign(made.style, style);
    return made;
  }

  function tip(head, rows) {
    const box = element("div");
    box.className = "tip";
    box.append(element("div", head, { fontWeight: 600 }));
    for (const [mark, text] of rows) {
      const row = element("div");
      if (mark) row.append(element("i", undefined, { background: mark }));
      row.append(text);
      box.append(row);
    }
    return box;
  }

  function common() {
    return {
      animation: false,
      textStyle: { fontFamily: FONT, color: color("text"), fontSize: 12 },
      tooltip: {
        confine: true,
        backgroundColor: color("card"),
        borderColor: color("line"),
        textStyle: { color: color("text"), fontSize: 13 },
      },
    };
  }

  function axis(extra) {
    return {
      axisLine: { lineStyle: { color: color("line") } },
      axisTick: { lineStyle: { color: color("line") } },
      axisLabel: { color: color("muted"), fontSize: 12, hideOverlap: true, ...extra?.axisLabel },
      splitLine: { lineStyle: { color: color("line"), opacity: 0.5 } },
      ...Object.fromEntries(Object.entries(extra ?? {}).filter(([key]) => key !== "axisLabel")),
    };
  }

  function along_axis(set) {
    const which = kind(set);
    return axis({
      type: "value",
      min: "dataMin",
      max: "dataMax",
      name: titles[which],
      nameLocation: "middle",
      nameGap: 22,
      nameTextStyle: { color: color("muted"), fontSize: 12 },
      splitNumber: 4,
      axisLabel: { formatter: formats[which], showMaxLabel: false },
    });
  }

  function line_series(series) {
    const shade = series.style === "faint" ? color("faint") : color(`series-${series.color % PALETTE}`);
    const places = axes[series.axes][kind(series.axes)];
    const points = series.y.map((y, index) => [places[index], y]);
    const line = {
      name: series.name,
      type: "line",
      data: points,
      showSymbol: series.style === "points" || points.length === 1,
      symbol: series.style === "points" ? "circle" : "emptyCircle",
      symbolSize: 6,
      color: shade,
      lineStyle: {
        width: series.style === "faint" ? 1 : 2,
        opacity: series.style === "faint" ? 0.55 : 1,
        type: series.style === "dashed" ? "dashed" : "solid",
      },
      emphasis: { disabled: true },
      z: series.style === "faint" ? 1 : 3,
    };
    if (!series.low) return [line];
    // The lowest and the highest value of each point, as a line behind it that zigzags.
    const extremes = places.flatMap((x, index) => [[x, series.low[index]], [x, series.high[index]]]);
    const behind = {
      ...line, name: `${series.name} (each step)`, data: extremes, showSymbol: false, silent: true,
      lineStyle: { width: 1, opacity: 0.35 }, z: 2, is_behind: true,
    };
    return [behind, line];
  }

  function lines(chart) {
    const all = chart.series.flatMap(line_series);
    const named = chart.series.filter((series) => series.style !== "faint");
    const limits = (chart.limits ?? []).map((limit) => ({ yAxis: limit.value, name: limit.name }));
    if (limits.length && all.length) {
      all[all.length - 1].markLine = {
        silent: true,
        symbol: "none",
        lineStyle: { color: color("limit"), type: "dotted", width: 1 },
        label: {
          formatter: "{b}", position: "insideStartTop", color: color("muted"), fontSize: 12,
        },
        data: limits,
      };
    }
    return {
      ...common(),
      grid: { left: 56, right: 14, top: named.length > 1 ? 34 : 14, bottom: 44 },
      legend: {
        show: named.length > 1,
        type: "scroll",
        top: 0,
        left: 0,
        data: named.map((series) => series.name),
        icon: "roundRect",
        itemWidth: 16,
        itemHeight: 5,
        textStyle: { color: color("text"), fontSize: 12 },
        pageTextStyle: { color: color("text") },
        pageIconColor: color("text"),
        pageIconInactiveColor: color("faint"),
        inactiveColor: color("muted"),
      },
      tooltip: {
        ...common().tooltip,
        trigger: "axis",
        formatter: (points) => {
          const set = chart.series[0].axes;
          const known = points.filter((point) =>
            named.some((series) => series.name === point.seriesName) && point.value[1] !== null);
          if (!known.length) return "";
          const at = `${titles[kind(set)]} ${formats[kind(set)](known[0].value[0])}`;
          return tip(at, known.map((point) =>
            [point.color, `${point.seriesName}: ${number(point.value[1], chart.percent)}`]));
        },
      },
      xAxis: along_axis(chart.series[0]?.axes ?? 0),
      yAxis: axis({
        type: chart.log ? "log" : "value",
        scale: !chart.zero,
        splitNumber: 4,
        axisLabel: { formatter: (y) => number(y, chart.percent) },
      }),
      series: all,
    };
  }

  // Rows of events. Each row's name stands above its line, where a telephone has room for it.
  function marks(chart) {
    const set = chart.series[0].axes;
    return {
      ...common(),
      grid: { left: 56, right: 14, top: 34, bottom: 44 },
      legend: {
        type: "scroll", top: 0, left: 0, data: chart.series.map((series) => series.name),
        textStyle: { color: color("text"), fontSize: 12 },
        pageTextStyle: { color: color("text") }, pageIconColor: color("text"),
      },
      tooltip: {
        ...common().tooltip,
        trigger: "item",
        formatter: (point) => tip(
          `${titles[kind(set)]} ${formats[kind(set)](point.value[0])}`, [[point.color, point.data.text]]),
      },
      xAxis: { ...along_axis(set), min: chart.span[kind(set)]?.[0], max: chart.span[kind(set)]?.[1] },
      yAxis: axis({
        type: "category",
        data: chart.rows,
        inverse: true,
        axisTick: { show: false },
        splitLine: { show: true, lineStyle: { color: color("line"), opacity: 0.5 } },
        axisLabel: {
          inside: true, verticalAlign: "bottom", padding: [0, 0, 8, 0], color: color("muted"),
          interval: 0, hideOverlap: false,
        },
        z: 4,
      }),
      series: chart.series.map((series) => ({
        name: series.name,
        type: "scatter",
        symbol: series.symbol,
        symbolSize: 9,
        color: color(`series-${series.color}`),
        data: series.y.map((row, index) => ({
          value: [axes[series.axes][kind(series.axes)][index], row], text: series.texts[index],
        })),
      })),
    };
  }

  const EDGES = [0.25, 0.5, 0.8, 1.25, 2, 4]; // of the share over the even share, as in SCALE

  // The share of each expert in each column, from 0 to 1.
  function shares(chart) {
    const bytes = Uint8Array.from(atob(chart.cells), (letter) => letter.charCodeAt(0));
    const view = new DataView(bytes.buffer);
    return Float64Array.from({ length: bytes.length / 2 }, (_, at) => view.getUint16(2 * at, true) / 65535);
  }

  function shade(share, chart) {
    if (share < chart.dead) return color("heat-dead");
    const level = EDGES.findIndex((edge) => share * chart.experts < edge);
    return color(`heat-${level < 0 ? EDGES.length : level}`);
  }

  // A canvas with one pixel per cell, which the style sheet stretches: the library would take half
  // a second for each layer of a large model.
  function heat(id, chart) {
    const box = document.getElementById(id);
    const which = kind(chart.axes);
    const places = axes[chart.axes][which];
    const canvas = element("canvas");
    canvas.width = places.length;
    canvas.height = chart.experts;
    const cells = shares(chart);
    const known = new Map(); // most shares occur several times
    const pen = canvas.getContext("2d");
    for (let at = 0; at < cells.length; at++) {
      if (!known.has(cells[at])) known.set(cells[at], shade(cells[at], chart));
      pen.fillStyle = known.get(cells[at]);
      pen.fillRect(Math.floor(at / chart.experts), at % chart.experts, 1, 1);
    }
    const experts = element("div");
    experts.className = "experts";
    experts.append(element("span", `expert 0`), element("span", `${chart.experts - 1}`));
    const along_it = element("div");
    along_it.className = "places";
    along_it.append(
      element("span", formats[which](places[0])), element("span", titles[which]),
      element("span", formats[which](places[places.length - 1])));
    const grid = element("div");
    grid.className = "heat";
    grid.append(experts, canvas, along_it);
    box.replaceChildren(grid);
    canvas.addEventListener("pointermove", (event) => {
      const column = Math.min(places.length - 1, Math.floor(places.length * event.offsetX / canvas.clientWidth));
      const expert = Math.min(chart.experts - 1, Math.floor(chart.experts * event.offsetY / canvas.clientHeight));
      if (column < 0 || expert < 0) return;
      const share = cells[column * chart.experts + expert];
      float(event, tip(`expert ${expert}, ${titles[which]} ${formats[which](places[column])}`, [[
        shade(share, chart),
        `${number(share, true)} of the layer's load, ${number(share * chart.experts)} times the even share`,
      ]]));
    });
    canvas.addEventListener("pointerleave", () => floating.remove());
  }

  const floating = element("div");
  floating.className = "float";

  // Show a text beside the pointer, inside of the window.
  function float(event, content) {
    floating.replaceChildren(content);
    document.body.append(floating);
    const left = Math.min(event.pageX + 12, scrollX + document.documentElement.clientWidth - floating.offsetWidth - 8);
    floating.style.left = `${Math.max(scrollX + 8, left)}px`;
    floating.style.top = `${event.pageY + 14}px`;
  }

  // Horizontal bars with their names above them, where a telephone has room for them.
  function bars(chart) {
    const names = axis({
      type: "category", data: chart.names, inverse: true,
      axisTick: { show: false }, splitLine: { show: false },
      axisLabel: {
        inside: true, verticalAlign: "bottom", padding: [0, 0, 11, -4], color: color("text"),
        interval: 0, hideOverlap: false,
      },
      z: 4,
    });
    const last = chart.series.length - 1;
    const series = chart.series.map((part, index) => ({
      name: part.name, type: "bar", stack: "all", data: part.values, barWidth: 14,
      color: part.color < 0 ? color("faint") : color(`series-${part.color}`),
      label: {
        show: index === last, position: "right", color: color("text"), fontSize: 12,
        formatter: ({ dataIndex }) => chart.labels[dataIndex],
      },
    }));
    if (chart.floors) {
      series.push({
        name: chart.floor_name, type: "scatter", symbol: "rect", symbolSize: [3, 20], z: 5,
        color: color("limit"), data: chart.floors.map((value, row) => [value || null, row]), // without a floor, no mark
      });
    }
    return {
      ...common(),
      grid: { left: 8, right: 70, top: 34, bottom: 44 },
      legend: {
        type: "scroll", top: 0, left: 0, textStyle: { color: color("text"), fontSize: 12 },
        pageTextStyle: { color: color("text") }, pageIconColor: color("text"),
      },
      tooltip: {
        ...common().tooltip,
        trigger: "item",
        formatter: (point) => {
          const value = Array.isArray(point.value) ? point.value[0] : point.value;
          const name = chart.names[Array.isArray(point.value) ? point.value[1] : point.dataIndex];
          return tip(name, [[point.color, `${point.seriesName}: ${number(value)} ${chart.unit}`]]);
        },
      },
      xAxis: axis({
        type: "value", name: chart.unit, nameLocation: "middle", nameGap: 22, splitNumber: 4,
        nameTextStyle: { color: color("muted"), fontSize: 12 },
        axisLabel: { formatter: (value) => number(value) },
      }),
      yAxis: names,
      series,
    };
  }

  const options = { lines, marks, bars };

  function draw(id) {
    const chart = charts[id];
    if (chart.kind === "heat") {
      heat(id, chart);
      drawn.set(id, null);
      return;
    }
    let shown = drawn.get(id);
    if (!shown) {
      shown = echarts.init(document.getElementById(id), null, { renderer: "svg" });
      if (chart.kind === "lines") shown.group = "along";
      drawn.set(id, shown);
      resized.observe(document.getElementById(id));
    }
    shown.setOption(options[chart.kind](chart), { notMerge: true });
  }

  const redraw = () => [...drawn.keys()].forEach(draw);
  const resized = new ResizeObserver((entries) => {
    for (const entry of entries) drawn.get(entry.target.id).resize();
  });
  // A chart is drawn when somebody comes near it, and otherwise when the browser has time.
  const near = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting && !drawn.has(entry.target.id)) draw(entry.target.id);
    }
  }, { rootMargin: "300px" });
  const idle = window.requestIdleCallback ?? ((work) => setTimeout(work, 50));

  function draw_next() {
    const next = Object.keys(charts).find((id) => !drawn.has(id));
    if (next === undefined) {
      document.documentElement.dataset.ready = "all";
      return;
    }
    draw(next);
    idle(draw_next);
  }

  for (const id of Object.keys(charts)) near.observe(document.getElementById(id));
  for (const input of document.querySelectorAll("input[name=along]")) {
    input.addEventListener("change", () => { along = input.value; redraw(); });
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  echarts.connect("along");
  idle(draw_next);
})();
