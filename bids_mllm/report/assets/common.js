"use strict";
// What the scripts of the page share: unpacking of numbers and making of labelled controls.
window.bidsMllm = (() => {
  let count = 0;

  async function unpack(text) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  function element(name, attributes, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      made.setAttribute(key, value);
    }
    made.append(...children);
    return made;
  }

  // Puts a control with its label into a row of controls and returns the control.
  function labelled(row, text, control) {
    count += 1;
    control.id = `control-${count}`;
    row.append(element("span", { class: "control" }, element("label", { for: control.id }, text), control));
    return control;
  }

  function choice(row, text, names) {
    const select = labelled(row, text, element("select", {}));
    fill(select, names);
    return select;
  }

  // Fills a select with names, or with lists of names under headings; the chosen one stays if it is still there.
  function fill(select, names) {
    const before = select.value;
    const groups = Array.isArray(names) ? [["", names]] : Object.entries(names);
    select.replaceChildren();
    for (const [heading, own] of groups) {
      const options = own.map((name) => element("option", { value: name }, name));
      select.append(...(heading ? [element("optgroup", { label: heading }, ...options)] : options));
    }
    if ([...select.options].some((option) => option.value === before)) {
      select.value = before;
    }
  }

  return { unpack, element, labelled, choice, fill };
})();
