// Tables sort by a click on a heading, and long ones are searched by their box; what paper should say is unfolded to be
// printed. Without this script the page shows the same.
"use strict";
for (const table of document.querySelectorAll("table.sorts")) {
  const body = table.tBodies[0];
  for (const [place, heading] of [...table.tHead.rows[0].cells].entries()) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const descending = heading.getAttribute("aria-sort") === "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
      const rows = [...body.rows].map((row) => [row.cells[place].dataset.order ?? "", row]);
      rows.sort(([a], [b]) => compared(a, b, descending));
      body.append(...rows.map(([, row]) => row));
    });
  }
  if (body.rows.length > 12) {
    const box = document.createElement("input");
    box.type = "search";
    box.placeholder = "rows that contain …";
    box.setAttribute("aria-label", "Show only rows that contain this");
    box.addEventListener("input", () => {
      const wanted = box.value.trim().toLowerCase();
      for (const row of body.rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
    });
    table.parentElement.before(box);
  }
}

addEventListener("beforeprint", () => {
  const folded = document.querySelectorAll("details.printed:not([open])");
  for (const each of folded) each.open = true;
  addEventListener("afterprint", () => { for (const each of folded) each.open = false; }, { once: true });
});

function compared(a, b, descending) {
  if (a === "" || b === "") return (a === "") - (b === ""); // what is not there comes last, either way
  const numbers = [Number(a), Number(b)];
  const order = numbers.some(Number.isNaN) ? a.localeCompare(b) : numbers[0] - numbers[1];
  return descending ? -order : order;
}
