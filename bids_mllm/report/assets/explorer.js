"use strict";
// Curves of a region's score over layers: of one model under its instructions, or of all models.
(() => {
  const { unpack, element, labelled, choice } = window.bidsMllm;
  const SVG = "http://www.w3.org/2000/svg";
  const [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [760, 330, 62, 14, 14, 46];
  const MISSING = -32768;
  const ALL_MODELS = "all models";
  const ALL_CONDITIONS = "all";

  function shape(name, attributes, text) {
    const made = document.createElementNS(SVG, name);
    Object.entries(attributes).forEach(([key, value]) => made.setAttribute(key, value));
    if (text !== undefined) {
      made.textContent = text;
    }
    return made;
  }

  // Values are stored by model, region, condition and layer; a curve is one row of layers.
  function curve(content, values, model, region, condition) {
    const [n_conditions, n_layers] = [model.conditions.length, model.layers.length];
    const start = model.start + (region * n_conditions + condition) * n_layers;
    return [...values.subarray(start, start + n_layers)].map((value) => (value === MISSING ? null : value / content.parts));
  }

  function mean(curves) {
    return curves[0].map((_, at) => {
      const known = curves.map((one) => one[at]).filter((value) => value !== null);
      return known.length ? known.reduce((sum, value) => sum + value, 0) / known.length : null;
    });
  }

  function curvesOf(content, values, region, modelName, conditionName) {
    if (modelName === ALL_MODELS) {
      return content.models.map((model, number) => {
        const own = model.conditions.indexOf(conditionName);
        const picked = own >= 0 ? [own] : model.conditions.map((_, at) => at);
        const y = mean(picked.map((at) => curve(content, values, model, region, at)));
        const words = own >= 0 || model.conditions.length === 1 ? "" : ", mean of its conditions";
        return { name: `${model.name}${words}`, x: model.depths, y, number, strong: true };
      });
    }
    const model = content.models.find((one) => one.name === modelName);
    const all = conditionName === ALL_CONDITIONS || !model.conditions.includes(conditionName);
    return model.conditions.map((name, number) => {
      const y = curve(content, values, model, region, number);
      return { name, x: model.layers, y, number, strong: all || name === conditionName };
    });
  }

  function niceStep(span) {
    const power = 10 ** Math.floor(Math.log10(span / 5));
    return [1, 2, 5, 10].map((factor) => factor * power).find((step) => span / step <= 6);
  }

  function ticks(low, high) {
    const step = niceStep(high - low);
    const found = [];
    for (let at = Math.ceil(low / step - 1e-9); at * step <= high + step * 1e-9; at += 1) {
      found.push(Number((at * step).toPrecision(6)));
    }
    return found;
  }

  function drawAxes(svg, ranges, place, labels) {
    ticks(...ranges.y).forEach((value) => {
      const y = place.y(value);
      svg.append(shape("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y, y2: y, stroke: value === 0 ? "#52606d" : "#d9dde3" }));
      svg.append(shape("text", { x: LEFT - 8, y: y + 4, "text-anchor": "end" }, String(value)));
    });
    ticks(...ranges.x).forEach((value) => {
      svg.append(shape("text", { x: place.x(value), y: HEIGHT - BOTTOM + 18, "text-anchor": "middle" }, String(value)));
    });
    const middle = (TOP + HEIGHT - BOTTOM) / 2;
    svg.append(shape("text", { x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 8, "text-anchor": "middle" }, labels.x));
    const turned = { x: 14, y: middle, "text-anchor": "middle", transform: `rotate(-90 14 ${middle})` };
    svg.append(shape("text", turned, labels.y));
  }

  // Beyond the number of unlike colours they repeat; the later curves are dashed.
  function isRepeated(colours, number) {
    return colours.indexOf(colours[number % colours.length]) < number;
  }

  function drawCurve(svg, one, place, colours) {
    const colour = colours[one.number % colours.length];
    const known = one.x.map((x, at) => [x, one.y[at]]).filter(([, y]) => y !== null);
    const points = known.map(([x, y]) => `${place.x(x).toFixed(1)},${place.y(y).toFixed(1)}`).join(" ");
    const pen = { fill: "none", stroke: one.strong ? colour : "#c8ced6", "stroke-width": one.strong ? 2.2 : 1.2 };
    const dashes = isRepeated(colours, one.number) ? { "stroke-dasharray": "7 4" } : {};
    svg.append(shape("polyline", { points, ...pen, ...dashes }));
    if (one.strong) {
      known.forEach(([x, y]) => svg.append(shape("circle", { cx: place.x(x), cy: place.y(y), r: 2.6, fill: colour })));
    }
  }

  function draw(svg, curves, colours, labels) {
    const values = curves.flatMap((one) => one.y).filter((value) => value !== null);
    const xs = curves.flatMap((one) => one.x);
    const [low, high] = [Math.min(0, ...values), Math.max(0.01, ...values)];
    const ranges = { x: [Math.min(...xs), Math.max(Math.min(...xs) + 1, ...xs)], y: [low, high] };
    const place = {
      x: (x) => LEFT + ((x - ranges.x[0]) / (ranges.x[1] - ranges.x[0])) * (WIDTH - LEFT - RIGHT),
      y: (y) => HEIGHT - BOTTOM - ((y - low) / (high - low)) * (HEIGHT - TOP - BOTTOM),
    };
    svg.replaceChildren();
    drawAxes(svg, ranges, place, labels);
    const inOrder = [...curves].sort((one, other) => one.strong - other.strong);
    inOrder.forEach((one) => drawCurve(svg, one, place, colours));
  }

  function drawLegend(list, curves, colours) {
    const items = curves.filter((one) => one.strong).map((one) => {
      const swatch = element("span", { class: "swatch" });
      const colour = colours[one.number % colours.length];
      const dashes = `repeating-linear-gradient(to right, ${colour} 0 4px, #fff 4px 6px)`;
      swatch.style.background = isRepeated(colours, one.number) ? dashes : colour;
      return element("li", {}, swatch, one.name);
    });
    list.replaceChildren(...items);
  }

  function peakWords(curves, labels) {
    let best = null;
    curves.filter((one) => one.strong).forEach((one) => {
      one.y.forEach((value, at) => {
        if (value !== null && (best === null || value > best.value)) {
          best = { value, at: one.x[at], name: one.name };
        }
      });
    });
    if (best === null) {
      return "This region has no scores.";
    }
    return `Highest: ${labels.y} ${best.value.toFixed(3)} at ${labels.x} ${best.at}, ${best.name}.`;
  }

  function fillNumbers(table, curves, labels) {
    const shown = curves.filter((one) => one.strong);
    const head = element("tr", {}, element("th", { scope: "col" }, labels.x));
    shown.forEach((one) => head.append(element("th", { scope: "col" }, one.name)));
    const positions = [...new Set(shown.flatMap((one) => one.x))].sort((one, other) => one - other);
    const rows = positions.map((x) => {
      const cells = shown.map((one) => one.y[one.x.indexOf(x)] ?? null);
      const texts = cells.map((value) => element("td", { class: "number" }, value === null ? "n/a" : value.toFixed(3)));
      return element("tr", {}, element("th", { scope: "row" }, String(x)), ...texts);
    });
    table.replaceChildren(element("caption", {}, labels.y), element("thead", {}, head), element("tbody", {}, ...rows));
  }

  async function start(root, content) {
    const measures = await Promise.all(content.measures.map(async (one) => ({
      label: one.label, values: new Int16Array((await unpack(one.values)).buffer),
    })));
    const row = element("div", { class: "controls live" });
    const svg = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" });
    const legend = element("ul", { class: "legend live" });
    const words = element("output", { class: "live", "aria-live": "polite" });
    const table = element("table", {});
    const numbers = element("details", { class: "live" }, element("summary", {}, "Numbers of these curves"), table);
    root.prepend(row, svg, legend, words, numbers);
    const names = content.models.map((one) => one.name);
    const conditions = [...new Set(content.models.flatMap((one) => one.conditions))];
    const region = labelled(row, "Region", element("select", {}));
    window.bidsMllm.fill(region, content.regions);
    const model = choice(row, "Model", names.length > 1 ? [...names, ALL_MODELS] : names);
    const condition = choice(row, "Condition", [ALL_CONDITIONS, ...conditions]);
    const measure = choice(row, "Score", measures.map((one) => one.label));
    const order = Object.values(content.regions).flat();
    const show = () => {
      const { values, label } = measures.find((one) => one.label === measure.value);
      const labels = { x: model.value === ALL_MODELS ? "depth (0 first layer, 1 last)" : "layer", y: label };
      const curves = curvesOf(content, values, order.indexOf(region.value), model.value, condition.value);
      draw(svg, curves, content.colours, labels);
      drawLegend(legend, curves, content.colours);
      fillNumbers(table, curves, labels);
      words.textContent = peakWords(curves, labels);
      svg.setAttribute("aria-label", `Curves of ${label} of ${region.value} over layers, ${model.value}. ${words.textContent}`);
      root.dataset.shown = [region.value, model.value, condition.value, measure.value].join(": ");
    };
    [region, model, condition, measure].forEach((control) => control.addEventListener("input", show));
    show();
  }

  document.querySelectorAll(".explorer").forEach((root) => {
    start(root, JSON.parse(root.querySelector("script").textContent));
  });
})();
