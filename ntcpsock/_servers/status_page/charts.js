// Elements and small plots. Everything is made of nodes and text: nothing that comes from the server is read as markup.
"use strict";

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "class") made.className = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

function drawing(name, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// A line with the area below it: values from old to new, from zero upwards.
function sparkline(values, label) {
  const width = 120, height = 40, top = 4;
  const picture = drawing("svg", {
    viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img", "aria-label": label,
  });
  if (values.length < 2) return picture;
  const most = Math.max(...values, 1e-9);
  const points = values.map((value, index) => {
    const x = (index / (values.length - 1)) * width;
    const y = height - 1 - (value / most) * (height - top - 1);
    return `${x.toFixed(2)} ${y.toFixed(2)}`;
  });
  picture.append(
    drawing("path", { class: "area", d: `M0 ${height} L${points.join(" L")} L${width} ${height} Z` }),
    drawing("path", { class: "stroke", d: `M${points.join(" L")}` }),
  );
  return picture;
}

// Rows of a name, a bar and a number. rows: [{name, value, text, kind}]
function bars(rows, most) {
  const grid = element("div", { class: "bars" });
  for (const row of rows) {
    const fill = element("div", { class: `fill ${row.kind || ""}` });
    fill.style.width = `${most ? Math.max(0, Math.min(100, (100 * row.value) / most)) : 0}%`;
    if (!row.value) fill.style.minWidth = "0";
    grid.append(
      element("span", { class: "name" }, row.name),
      element("div", { class: "track" }, fill),
      element("span", { class: "number" }, row.text),
    );
  }
  return grid;
}

// counts: [[upper bound or null, count]]
function histogram(counts, label) {
  const width = 440, height = 144, foot = 20, head = 16;
  const most = Math.max(...counts.map(([, count]) => count), 1);
  const all = counts.reduce((sum, [, count]) => sum + count, 0);
  const step = width / counts.length;
  const picture = drawing("svg", {
    class: "histogram", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label,
  });
  counts.forEach(([bound, count], index) => {
    const tall = ((height - foot - head) * count) / most;
    const x = index * step, y = height - foot - tall;
    picture.append(drawing("rect", { x: x + 3, y, width: step - 6, height: tall, rx: 2 }));
    if (count) {
      const share = drawing("text", { x: x + step / 2, y: y - 5 });
      share.textContent = `${Math.round((100 * count) / all)}%`;
      picture.append(share);
    }
    const name = drawing("text", { x: x + step / 2, y: height - 5 });
    name.textContent = bound === null ? "more" : bound < 1 ? `${Math.round(bound * 1000)}` : `${bound} s`;
    picture.append(name);
  });
  picture.append(drawing("line", { class: "axis", x1: 0, x2: width, y1: height - foot, y2: height - foot }));
  return picture;
}
