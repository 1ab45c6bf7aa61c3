"use strict";
// Header cells become buttons that sort, and long tables of regions get a text filter.
(() => {
  const { element, labelled } = window.bidsMllm;
  const words = new Intl.Collator("en", { numeric: true, sensitivity: "base" });

  function content(row, column) {
    const cell = row.cells[column];
    const text = cell.textContent.trim();
    const number = Number(cell.dataset.value ?? text);
    if (text === "" || text === "n/a") {
      return { missing: true };
    }
    return { missing: false, number: Number.isNaN(number) ? null : number, text };
  }

  // Negative where the first one comes before the other; what is missing comes last in both directions.
  function compare(one, other, sign) {
    if (one.missing || other.missing) {
      return Number(one.missing) - Number(other.missing);
    }
    if (one.number !== null && other.number !== null) {
      return sign * (one.number - other.number);
    }
    if (one.number !== null || other.number !== null) {
      return sign * (one.number !== null ? -1 : 1);
    }
    return sign * words.compare(one.text, other.text);
  }

  function sort(table, column) {
    const headers = [...table.tHead.rows[0].cells];
    const sign = headers[column].getAttribute("aria-sort") === "ascending" ? -1 : 1;
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => ({ row, value: content(row, column) }));
    rows.sort((one, other) => compare(one.value, other.value, sign));
    body.append(...rows.map(({ row }) => row));
    headers.forEach((header) => header.removeAttribute("aria-sort"));
    headers[column].setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
  }

  function addFilter(place, table) {
    const row = element("div", { class: "controls" });
    const field = labelled(row, "Show rows with", element("input", { type: "search", autocomplete: "off" }));
    const found = element("output", { for: field.id });
    row.append(found);
    place.before(row);
    const rows = [...table.tBodies[0].rows];
    field.addEventListener("input", () => {
      const wanted = field.value.trim().toLowerCase();
      rows.forEach((one) => {
        one.hidden = !one.textContent.toLowerCase().includes(wanted);
      });
      const shown = rows.filter((one) => !one.hidden).length;
      found.textContent = wanted ? `${shown} of ${rows.length} rows` : "";
    });
  }

  document.querySelectorAll(".scroll > table").forEach((table) => {
    if (table.tBodies[0].rows.length < 2) {
      return;
    }
    [...table.tHead.rows[0].cells].forEach((header, column) => {
      const button = element("button", { type: "button", class: "sort" }, ...header.childNodes);
      button.addEventListener("click", () => sort(table, column));
      header.append(button);
    });
    const place = table.parentElement;
    if (place.dataset.filter !== undefined) {
      addFilter(place, table);
    }
  });
})();
