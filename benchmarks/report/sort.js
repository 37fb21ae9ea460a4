// Tables of class "sortable": a click on a heading sorts by that column, a second one the other way round.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const key = (row, column) => {
    const cell = row.cells[column];
    const exact = cell.querySelector("[data-value]");
    const text = exact ? exact.dataset.value : cell.textContent;
    const number = parseFloat(text);
    return Number.isNaN(number) ? text : number;
  };
  table.tHead.rows[0].querySelectorAll("th").forEach((heading, column) => {
    heading.tabIndex = 0;
    const sort = () => {
      const down = heading.dataset.order === "up";
      table.querySelectorAll("th").forEach((other) => delete other.dataset.order);
      heading.dataset.order = down ? "down" : "up";
      const rows = [...body.rows].map((row) => [key(row, column), row]);
      const mixed = (a, b) => (typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? -1 : 1);
      rows.sort(([a], [b]) => (down ? mixed(b, a) : mixed(a, b)));
      body.append(...rows.map(([, row]) => row));
    };
    heading.addEventListener("click", sort);
    heading.addEventListener("keydown", (event) => event.key === "Enter" && sort());
  });
}
