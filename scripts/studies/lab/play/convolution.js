// A trained filter walks over an image. data: image, seen (3, H, W), weight (O, 27), bias (O), stride, padding.
plays.convolution = (stage, data) => {
  const side = data.image[0].length, { stride, padding } = data;
  const out = Math.floor((side + 2 * padding - 3) / stride) + 1;
  let filter = 0, place = Math.floor(out * out / 2), stop = () => {}, walking = false;

  /** Products of the filter and what lies below it, (3 channels, 9). */
  const products = (at) => [0, 1, 2].map((channel) => Array.from({ length: 9 }, (_, i) => {
    const y = Math.floor(at / out) * stride - padding + Math.floor(i / 3), x = (at % out) * stride - padding + i % 3;
    return data.weight[filter][9 * channel + i] * (data.seen[channel][y]?.[x] ?? 0);
  }));
  const value = (at) => products(at).flat().reduce((a, b) => a + b, data.bias[filter]);

  stage.choice("Filter:", "濾波器：", data.bias.map((_, i) => [i, String(i + 1), String(i + 1)]), filter, (next) => { filter = next; draw(); });
  stage.row();
  const move = (next) => {
    place = Math.max(0, Math.min(out * out - 1, next));
    slider.set(place + 1);
    draw();
  };
  stage.button("walk / stop", "走 / 停", () => {
    stop();
    walking = !walking;
    if (!walking) return;
    if (place === out * out - 1) place = 0;
    stop = animate(() => {
      move(place + 1);
      return walking = place < out * out - 1;
    }, 70);
  });
  stage.button("one step", "走一步", () => { stop(); walking = false; move((place + 1) % (out * out)); });
  const slider = stage.slider("place", "位置", [1, out * out, 1], place + 1, (next) => { stop(); walking = false; move(next - 1); });

  const gap = 16, title = 28;
  const size = (width) => (width - gap) / 2;
  const picture = stage.picture((width) => title + size(width) + 96, (context, width) => {
    const box = size(width), pixel = box / side, cell = box / out;
    context.fillStyle = colour("ink");
    context.fillText(root.lang === "en" ? "image" : "影像", 0, 16);
    context.fillText(root.lang === "en" ? "feature map so far" : "目前的特徵圖", box + gap, 16);
    for (let y = 0; y < side; y++) {
      for (let x = 0; x < side; x++) {
        context.fillStyle = `rgb(${data.image.map((channel) => channel[y][x]).join(",")})`;
        context.fillRect(x * pixel, title + y * pixel, pixel + 0.5, pixel + 0.5);
      }
    }
    const all = Array.from({ length: out * out }, (_, at) => value(at));
    const most = Math.max(...all.map(Math.abs), 1e-9);
    const paint = (number, largest, x, y, wide) => {
      context.fillStyle = colour(number < 0 ? "b" : "a");
      context.globalAlpha = Math.min(1, Math.abs(number) / largest);
      context.fillRect(x, y, wide, wide);
      context.globalAlpha = 1;
    };
    context.strokeStyle = colour("line");
    context.strokeRect(box + gap, title, box, box);
    for (let at = 0; at <= place; at++) {
      paint(all[at], most, box + gap + (at % out) * cell, title + Math.floor(at / out) * cell, cell);
    }
    const [row, column] = [Math.floor(place / out), place % out];
    context.strokeStyle = colour("ink");
    context.lineWidth = 3;
    context.strokeRect((column * stride - padding) * pixel, title + (row * stride - padding) * pixel, 3 * pixel, 3 * pixel);
    context.strokeRect(box + gap + column * cell, title + row * cell, cell, cell);
    const parts = products(place), largest = Math.max(...parts.flat().map(Math.abs), 1e-9), bit = 18;
    const start = title + box + 34;
    context.fillStyle = colour("ink");
    const names = root.lang === "en" ? ["red", "green", "blue"] : ["紅", "綠", "藍"];
    parts.forEach((nine, channel) => {
      const left = channel * (3 * bit + 22);
      context.fillStyle = colour("ink");
      context.fillText(names[channel], left, start - 8);
      context.lineWidth = 1;
      context.strokeStyle = colour("line");
      nine.forEach((number, i) => {
        const [x, y] = [left + (i % 3) * bit, start + Math.floor(i / 3) * bit];
        paint(number, largest, x, y, bit);
        context.strokeRect(x, y, bit, bit);
      });
      context.fillStyle = colour("ink");
      if (channel < 2) context.fillText("+", left + 3 * bit + 7, start + 1.5 * bit + 4);
    });
    context.fillText(`= ${all[place].toFixed(2)}`, 3 * (3 * bit + 22) - 14, start + 1.5 * bit + 4);
  }, ["A filter on an image and its feature map; click on the image to put it there", "影像上的濾波器與特徵圖；點一下影像就移到那裡"]);
  picture.press = (x, y) => {
    const box = size(picture.canvas.clientWidth), inMap = x > box + gap / 2;
    const column = Math.floor((inMap ? x - box - gap : x) / box * out), row = Math.floor((y - title) / box * out);
    if (row >= out) return;
    stop();
    walking = false;
    move(Math.max(0, Math.min(out - 1, row)) * out + Math.max(0, Math.min(out - 1, column)));
  };
  picture.arrow = (dx, dy) => { stop(); walking = false; move(place + dx + dy * out); };
  const words = stage.words();
  function draw() {
    picture.redraw();
    const [row, column] = [Math.floor(place / out) + 1, place % out + 1];
    const rest = value(place) < 0 ? [" (ReLU makes it 0)", "（ReLU 之後是 0）"] : ["", ""];
    words.say(
      `Row ${row}, column ${column}: 27 products (blue positive, orange negative) and the bias add up to ${value(place).toFixed(2)}${rest[0]}.`,
      `第 ${row} 列、第 ${column} 行：27 個乘積（藍正橘負）加上偏差，總和是 ${value(place).toFixed(2)}${rest[1]}。`,
    );
  }
  draw();
};
