// Numbers as people read them; – where nothing is known.

export const count = (value) => value.toLocaleString("en");

export function number(value) {
  if (value === null) return "–";
  return value.toLocaleString("en", { maximumFractionDigits: value < 100 ? 1 : 0 });
}

export function duration(seconds) {
  if (seconds === null) return "–";
  const [value, unit] = seconds >= 1 ? [seconds, "s"] : [seconds * 1000, "ms"];
  return `${value.toLocaleString("en", { maximumSignificantDigits: 2 })} ${unit}`;
}

export function age(seconds) {
  const units = [["d", 86_400], ["h", 3_600], ["min", 60], ["s", 1]];
  const first = units.findIndex(([, size]) => seconds >= size);
  if (first < 0) return "0 s";
  const parts = units.slice(first, first + 2).map(([name, size], place) => {
    const above = place ? units[first][1] : Infinity;
    return `${Math.floor((seconds % above) / size)} ${name}`;
  });
  return parts.join(" ");
}
