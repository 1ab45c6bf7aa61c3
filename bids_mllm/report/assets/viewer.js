"use strict";
// Maps on surfaces or in slices: a model, a map and a view are chosen, and low values can be hidden.
(() => {
  const { unpack, element, labelled, choice, fill } = window.bidsMllm;
  const BOTH = [true, true];
  // Hemispheres that are seen (left, right), azimuth and elevation in degrees, and where the front and the sides are.
  const VIEWS = {
    "left, from outside": [[true, false], 90, 0, "Left hemisphere from outside; its front is on the left."],
    "left, from the middle": [[true, false], 270, 0, "Left hemisphere from the middle; its front is on the right."],
    "right, from outside": [[false, true], 270, 0, "Right hemisphere from outside; its front is on the right."],
    "right, from the middle": [[false, true], 90, 0, "Right hemisphere from the middle; its front is on the left."],
    "both, from above": [BOTH, 0, 90, "From above: the left hemisphere is on the left and the front on top."],
    "both, from below": [BOTH, 180, -90, "From below: the left hemisphere is on the right and the front on top."],
    "both, from behind": [BOTH, 0, 0, "From behind: the left hemisphere is on the left."],
    "both, from the front": [BOTH, 180, 0, "From the front: the left hemisphere is on the right."],
  };
  const AXES = ["x (left to right)", "y (back to front)", "z (bottom to top)"];
  // Shades only the bare surface, which is grey, so that the colours of maps are those of the legend.
  const SHADER = `#version 300 es
    precision highp int;
    precision highp float;
    uniform float opacity;
    in vec4 vClr;
    in vec3 vN;
    out vec4 color;
    void main() {
      bool bare = abs(vClr.r - vClr.g) + abs(vClr.g - vClr.b) < 0.004;
      float light = bare ? 0.55 + 0.5 * abs(normalize(vN).z) : 1.0;
      color = vec4(min(vClr.rgb * light, 1.0), opacity);
    }`;
  let library = null;

  // Runs the library once; its text is allowed by the policy of the page.
  function loaded() {
    library ??= unpack(document.getElementById("viewer-library").textContent).then((bytes) => {
      document.head.append(element("script", {}, new TextDecoder().decode(bytes)));
      return window.niivue;
    });
    return library;
  }

  function hasWebGL() {
    return document.createElement("canvas").getContext("webgl2") !== null;
  }

  // Numbers between the stored codes of neighbouring names, so that their colours do not mix.
  function spread(scale) {
    return Math.max(1, Math.floor(255 / scale.colours.length));
  }

  // The colours of spread codes; 0 is transparent.
  function colourTable(scale) {
    const step = spread(scale);
    const table = { min: 0, max: 255, R: [], G: [], B: [], A: [], I: [] };
    for (let at = 0; at < 256; at += 1) {
      const code = Math.min(Math.round(at / step), scale.colours.length);
      const shown = code > 0;
      const colour = parseInt((scale.colours[code - 1] ?? "#000000").slice(1), 16);
      table.R.push(shown ? colour >> 16 : 0);
      table.G.push(shown ? (colour >> 8) & 255 : 0);
      table.B.push(shown ? colour & 255 : 0);
      table.A.push(shown ? 255 : 0);
      table.I.push(at);
    }
    return table;
  }

  function valueOf(scale, code) {
    return scale.low + ((scale.high - scale.low) * code) / scale.colours.length;
  }

  function wordsOf(scale, code) {
    if (code === 0) {
      return "nothing";
    }
    return scale.names ? scale.names[code - 1] : valueOf(scale, code).toFixed(3);
  }

  function mz3(points, faces, scale) {
    const bytes = new ArrayBuffer(16 + 4 * faces.length + 4 * points.length);
    new Uint16Array(bytes, 0, 2).set([23117, 3]);
    new Uint32Array(bytes, 4, 3).set([faces.length / 3, points.length / 3, 0]);
    new Uint32Array(bytes, 16, faces.length).set(faces);
    new Float32Array(bytes, 16 + 4 * faces.length).set(points.map((value) => value * scale));
    return bytes;
  }

  function layer(values, colormap) {
    return {
      name: colormap, url: "", colorbarVisible: false, isAdditiveBlend: false, frame4D: 0, nFrame4D: 1, opacity: 1,
      cal_min: 0.5, cal_max: 255, global_min: 0, global_max: 255, cal_minNeg: NaN, cal_maxNeg: NaN,
      colormap, colormapNegative: "", colormapType: 1, colormapInvert: false, useNegativeCmap: false,
      isTransparentBelowCalMin: true, alphaThreshold: false, outlineBorder: 0, values,
    };
  }

  // Both draw one map on a canvas: `show(codes, name)` with codes times their spread and the name of a colour table.
  async function surfaces(niivue, nv, place, row, say) {
    const meshes = [];
    for (const side of [place.left, place.right]) {
      const points = Float32Array.from(new Int16Array((await unpack(side.points)).buffer));
      const faces = Uint32Array.from(new Uint16Array((await unpack(side.faces)).buffer));
      const buffer = mz3(points, faces, place.unit);
      const mesh = await niivue.NVMesh.loadFromUrl({ url: "surface.mz3", name: "surface.mz3", gl: nv.gl, buffer });
      const folds = Float32Array.from(await unpack(side.folds));
      nv.addMesh(mesh);
      mesh.layers = [layer(folds, "folds"), layer(new Float32Array(folds.length), "folds")];
      meshes.push(mesh);
    }
    nv.addColormap("folds", { R: [0, 255], G: [0, 255], B: [0, 255], A: [255, 255], I: [0, 255] });
    nv.setSliceType(nv.sliceTypeRender);
    nv.setScale(1.1);
    nv.setCustomMeshShader(SHADER, "legend");
    meshes.forEach((mesh) => nv.setMeshShader(mesh.id, "legend"));
    const view = choice(row, "View", Object.keys(VIEWS));
    const turn = () => {
      const [seen, azimuth, elevation, words] = VIEWS[view.value];
      meshes.forEach((mesh, side) => {
        mesh.visible = seen[side];
      });
      nv.setRenderAzimuthElevation(azimuth, elevation);
      say(words);
    };
    view.addEventListener("change", turn);
    const show = (codes, name) => {
      let start = 0;
      meshes.forEach((mesh) => {
        const own = mesh.layers[1];
        const length = own.values.length;
        own.values = Float32Array.from(codes.subarray(start, start + length));
        own.colormap = name;
        start += length;
        mesh.updateMesh(nv.gl);
      });
      turn();
    };
    return { show };
  }

  async function volumeOf(niivue, grid, codes, name) {
    const steps = [0, 1, 2].map((axis) => Math.hypot(...[0, 1, 2].map((i) => grid.affine[4 * i + axis])));
    const bytes = niivue.NVImage.createNiftiArray(grid.shape, steps, grid.affine, 2, codes);
    const buffer = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength);
    return niivue.NVImage.loadFromUrl({ url: name, name, buffer, colormap: "gray", cal_min: 0, cal_max: 255 });
  }

  async function slices(niivue, nv, place, row, say, scaleOf) {
    const below = await unpack(place.background.codes);
    nv.addVolume(await volumeOf(niivue, place.background, below, "anatomy.nii"));
    const empty = new Uint8Array(place.shape.reduce((product, length) => product * length));
    nv.addVolume(await volumeOf(niivue, place, empty, "map.nii"));
    nv.setInterpolation(true);
    nv.setSliceType(nv.sliceTypeMultiplanar);
    nv.setMultiplanarLayout(3);
    nv.opts.multiplanarShowRender = 0;
    const [low, high] = place.extent;
    const cuts = AXES.map((name, axis) => {
      const range = { type: "range", min: low[axis], max: high[axis], step: 1, value: place.start[axis] };
      return labelled(row, name, element("input", range));
    });
    const overlay = nv.volumes[1];
    const tell = () => {
      const at = cuts.map((cut) => Number(cut.value));
      const voxel = overlay.mm2vox([...at]).map(Math.round);
      const inside = voxel.every((index, axis) => index >= 0 && index < place.shape[axis]);
      const [scale, stored] = [scaleOf(), overlay.img];
      const [x, y, z] = voxel;
      const code = inside ? stored[x + place.shape[0] * (y + place.shape[1] * z)] / spread(scale) : 0;
      say(`Left is on the left. At ${at.join(", ")} mm: ${wordsOf(scale, Math.round(code))}.`);
    };
    const move = () => {
      nv.scene.crosshairPos = nv.mm2frac(cuts.map((cut) => Number(cut.value)));
      nv.drawScene();
      tell();
    };
    cuts.forEach((cut) => cut.addEventListener("input", move));
    nv.onLocationChange = (location) => {
      cuts.forEach((cut, axis) => {
        cut.value = Math.round(location.mm[axis]);
      });
      tell();
    };
    const show = (codes, name) => {
      overlay.img = codes;
      overlay.colormap = name;
      [overlay.cal_min, overlay.cal_max] = [0, 255];
      nv.updateGLVolume();
      move();
    };
    return { show };
  }

  function drawLegend(list, scale, lowest) {
    list.replaceChildren();
    if (scale.names) {
      scale.names.forEach((name, number) => {
        const swatch = element("span", { class: "swatch" });
        swatch.style.background = scale.colours[number];
        list.append(element("li", {}, swatch, name));
      });
      return;
    }
    const bar = element("span", { class: "bar" });
    bar.style.background = `linear-gradient(to right, ${scale.colours.filter((_, at) => at % 16 === 0).join(", ")})`;
    const [low, high, hidden] = [scale.low, scale.high, valueOf(scale, lowest)].map((value) => value.toFixed(3));
    const parts = [scale.label, low, bar, high, ...(lowest ? [`(hidden up to ${hidden})`] : [])];
    list.append(...parts.map((part) => element("li", {}, part)));
  }

  // Makes the pickers of the model, the map and the lowest value; `changed(map, lowest)` is called on a choice.
  function pickers(row, content, changed) {
    const models = [...new Set(content.maps.map((map) => map.model))];
    const model = choice(row, "Model", models);
    const name = choice(row, "Map", []);
    const lowest = labelled(row, "Hide below", element("input", { type: "range", min: 0, max: 200, value: 0 }));
    const find = () => content.maps.find((map) => map.model === model.value && map.name === name.value);
    const pick = () => {
      const scale = content.scales[find().scale];
      lowest.disabled = Boolean(scale.names);
      const hidden = scale.names ? 0 : Number(lowest.value);
      lowest.setAttribute("aria-valuetext", scale.names ? "not for names" : valueOf(scale, hidden).toFixed(3));
      changed(find(), hidden);
    };
    const offer = () => {
      const groups = {};
      content.maps.filter((map) => map.model === model.value).forEach((map) => {
        (groups[map.group] ??= []).push(map.name);
      });
      fill(name, groups);
    };
    model.addEventListener("change", () => {
      offer();
      pick();
    });
    [name, lowest].forEach((control) => control.addEventListener("input", pick));
    offer();
    return { find, pick };
  }

  async function start(root, content) {
    const niivue = await loaded();
    const row = element("div", { class: "controls live" });
    const canvas = element("canvas", { role: "img", tabindex: "0", width: 900, height: 416 });
    const legend = element("ul", { class: "legend live" });
    const words = element("output", { class: "live", "aria-live": "polite" });
    const frame = element("div", { class: "live frame-of-canvas" }, canvas);
    const isSurface = content.place.kind === "surface";
    root.prepend(row, frame, legend, words);
    const nv = new niivue.Niivue({
      logLevel: "silent", show3Dcrosshair: false, isColorbar: false, dragAndDropEnabled: false, isSliceMM: true,
      backColor: isSurface ? [1, 1, 1, 1] : [0, 0, 0, 1], fontColor: [1, 1, 1, 1],
      crosshairColor: [0.34, 0.71, 0.91, 1], crosshairWidth: 0.7, crosshairWidthUnit: "mm",
    });
    await nv.attachToCanvas(canvas);
    const say = (text) => {
      words.textContent = text;
    };
    const unpacked = new Map();
    let drawn = null;
    let newest = 0;
    const chosen = pickers(row, content, async (map, lowest) => {
      newest += 1;
      const own = newest;
      if (!unpacked.has(map)) {
        unpacked.set(map, await unpack(map.codes));
      }
      if (own !== newest) {
        return;
      }
      const scale = content.scales[map.scale];
      const step = spread(scale);
      nv.addColormap(`table ${own % 2}`, colourTable(scale));
      drawn.show(unpacked.get(map).map((code) => (code > lowest ? code * step : 0)), `table ${own % 2}`);
      drawLegend(legend, scale, lowest);
      canvas.setAttribute("aria-label", `${map.name} of ${map.model}`);
      root.dataset.shown = `${map.model}: ${map.name}: ${lowest}`;
    });
    const scaleOf = () => content.scales[chosen.find().scale];
    const make = isSurface ? surfaces : slices;
    drawn = await make(niivue, nv, content.place, row, say, scaleOf);
    chosen.pick();
    root.querySelector(".still").hidden = true;
  }

  document.querySelectorAll(".viewer").forEach((root) => {
    const content = JSON.parse(root.querySelector("script").textContent);
    if (!hasWebGL()) {
      const text = "This browser draws no three-dimensional pictures (WebGL), so the map is shown as a still picture.";
      root.prepend(element("p", { class: "caption" }, text));
      return;
    }
    const seen = new IntersectionObserver((entries) => {
      if (entries.some((entry) => entry.isIntersecting)) {
        seen.disconnect();
        start(root, content);
      }
    }, { rootMargin: "400px" });
    seen.observe(root);
  });
})();
