// What every page does besides the reader: tables sort, figures and their numbers can be saved.
"use strict";

// Data in the page: compressed, in base64. Their texts reach the page as text alone.
async function unpacked(element) {
  const packed = Uint8Array.from(atob(element.textContent), (byte) => byte.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

(() => {
  // ---- tables

  function value(row, column) {
    const text = row.cells[column]?.textContent.trim() ?? "";
    const number = parseFloat(text.replace(/^[×<≤+\s]+/, "").replace(/^−/, "-").replaceAll(",", ""));
    return { text, number };
  }

  function sort(table, column, heading) {
    const rising = heading.getAttribute("aria-sort") !== "ascending";
    for (const other of heading.parentElement.cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", rising ? "ascending" : "descending");
    const rows = [...table.tBodies[0].rows].map((row) => ({ row, ...value(row, column) }));
    const numbers = rows.every(({ text, number }) => text === "" || text === "–" || !Number.isNaN(number));
    const size = ({ number }) => (Number.isNaN(number) ? -Infinity : number);
    const order = (one, other) => {
      const found = numbers ? size(one) - size(other) : one.text.localeCompare(other.text);
      return (rising ? 1 : -1) * (Number.isNaN(found) ? 0 : found);
    };
    table.tBodies[0].append(...rows.sort(order).map(({ row }) => row));
  }

  for (const table of document.querySelectorAll("table")) {
    if (table.tBodies[0].rows.length < 3) continue;
    [...table.tHead.rows[0].cells].forEach((heading, column) => {
      if (!heading.textContent.trim() || heading.firstElementChild) return;
      const button = document.createElement("span"); // what is a button is not repeated in print
      button.tabIndex = 0;
      button.className = "sort";
      button.title = "Sort by this column";
      button.setAttribute("role", "button");
      button.textContent = heading.textContent;
      button.addEventListener("click", () => sort(table, column, heading));
      button.addEventListener("keydown", (event) => {
        if (!["Enter", " "].includes(event.key)) return;
        event.preventDefault();
        sort(table, column, heading);
      });
      heading.replaceChildren(button);
    });
  }

  // A folded table is printed all the same.
  addEventListener("beforeprint", () => {
    for (const fold of document.querySelectorAll("details.fold")) fold.open = true;
  });

  // ---- figures

  const STYLE = [
    "fill", "fill-opacity", "stroke", "stroke-width", "stroke-dasharray", "stroke-linecap",
    "stroke-linejoin", "opacity", "paint-order", "font-family", "font-size", "font-weight",
  ];

  // The picture as it looks here, with its style in itself.
  function standalone(svg) {
    const copy = svg.cloneNode(true);
    const [, , width, height] = svg.getAttribute("viewBox").split(" ");
    copy.setAttribute("width", width);
    copy.setAttribute("height", height);
    const copies = copy.querySelectorAll("*");
    svg.querySelectorAll("*").forEach((element, place) => {
      const style = getComputedStyle(element);
      for (const name of STYLE) copies[place].style.setProperty(name, style.getPropertyValue(name));
    });
    copy.querySelectorAll(".pointer").forEach((element) => element.remove());
    const paper = document.createElementNS(svg.namespaceURI, "rect");
    paper.setAttribute("width", width);
    paper.setAttribute("height", height);
    paper.setAttribute("fill", getComputedStyle(document.body).backgroundColor);
    copy.prepend(paper);
    return new XMLSerializer().serializeToString(copy);
  }

  async function png(svg) {
    const picture = new Image();
    picture.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(standalone(svg))}`;
    await picture.decode();
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [3 * picture.width, 3 * picture.height];
    canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
    return new Promise((done) => canvas.toBlob(done, "image/png"));
  }

  function save(name, blob) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  const MAKERS = {
    SVG: async (svg) => new Blob([standalone(svg)], { type: "image/svg+xml" }),
    PNG: png,
    CSV: async (svg, numbers) => new Blob([await unpacked(numbers)], { type: "text/csv" }),
  };

  for (const numbers of document.getElementsByClassName("figure-numbers")) {
    const name = numbers.id.replace("numbers-", "");
    const svg = document.querySelector(`svg.${name}`);
    if (!svg) continue;
    const line = document.createElement("p");
    line.className = "take";
    line.append("Save: ");
    for (const [kind, make] of Object.entries(MAKERS)) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = kind === "CSV" ? "numbers" : kind;
      button.setAttribute("aria-label", `Save the ${kind === "CSV" ? "numbers" : kind} of figure ${name}`);
      button.addEventListener("click", async () => save(`${name}.${kind.toLowerCase()}`, await make(svg, numbers)));
      line.append(button, " ");
    }
    svg.parentElement.after(line);
  }
})();
