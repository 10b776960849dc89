// A sum of sigmoids, one more at a time. data: x, y of the function, and parts: {way: {count: {w, b, c, bias}}}.
plays.sigmoids = (stage, data) => {
  const counts = Object.keys(data.parts.built);
  let way = "built", count = counts[Math.min(2, counts.length - 1)], shown = 3;
  let pieces, errors;

  /** Each sigmoid on the grid; those set by hand from left to right, those trained with the highest first. */
  function choose() {
    const { w, b, c, bias } = data.parts[way][count];
    const order = w.map((_, i) => i);
    if (way === "trained") order.sort((i, j) => Math.abs(c[j]) - Math.abs(c[i]));
    pieces = order.map((i) => data.x.map((x) => c[i] / (1 + Math.exp(-w[i] * x - b[i]))));
    const sum = data.x.map(() => bias[0]);
    errors = [[...sum], ...pieces.map((piece) => piece.map((value, i) => (sum[i] += value)))];
    shown = Math.min(shown, pieces.length);
    slider.max = pieces.length;
    slider.set(shown);
    draw();
  }

  stage.choice("Set by:", "由誰設定：", [["built", "hand", "手動"], ["trained", "training", "訓練"]], way, (next) => { way = next; choose(); });
  stage.choice("Sigmoids in all:", "sigmoid 總數：", counts.map((n) => [n, n, n]), count, (next) => {
    count = next;
    shown = Math.min(3, Number(next));
    choose();
  });
  stage.row();
  const move = (next) => {
    shown = Math.max(0, Math.min(pieces.length, next));
    slider.set(shown);
    draw();
  };
  stage.button("one less", "減一個", () => move(shown - 1));
  stage.button("one more", "加一個", () => move(shown + 1));
  let stop = () => {};
  stage.button("add all", "全部加上", () => {
    stop();
    stop = animate(() => {
      move(shown + 1);
      return shown < pieces.length;
    }, 90);
  });
  const slider = stage.slider("sigmoids added", "已加上的 sigmoid", [0, 3, 1], shown, (value) => { stop(); move(value); });

  const picture = stage.picture((width) => Math.min(340, width * 0.7), (context, width, height) => {
    const sum = errors[shown], all = [...data.y, ...sum];
    const [low, high] = [Math.min(-1.2, ...all), Math.max(1.2, ...all)];
    const across = (i) => i / (data.x.length - 1) * width, down = (value) => height - 8 - (value - low) / (high - low) * (height - 16);
    const line = (values, ink, thick, alpha = 1) => {
      context.globalAlpha = alpha;
      context.strokeStyle = colour(ink);
      context.lineWidth = thick;
      context.beginPath();
      values.forEach((value, i) => context.lineTo(across(i), down(value)));
      context.stroke();
      context.globalAlpha = 1;
    };
    line(data.y, "quiet", 6, 0.45);
    pieces.slice(0, shown).forEach((piece, i) => {
      const last = i === shown - 1;
      line(piece, last ? "b" : "c", last ? 2 : 1, last ? 1 : 0.35);
    });
    line(sum, "a", 2.5);
  }, ["Grey: the function; blue: the sum so far; orange: the last sigmoid", "灰：目標函數；藍：目前的總和；橘：最後一個 sigmoid"]);
  picture.arrow = (dx) => move(shown + dx);
  picture.press = () => move(shown === pieces.length ? 0 : shown + 1);
  const words = stage.words();
  function draw() {
    picture.redraw();
    const largest = Math.max(...errors[shown].map((value, i) => Math.abs(value - data.y[i]))).toPrecision(2);
    words.say(
      `Grey is the function, blue the sum of ${shown} of ${pieces.length} sigmoids, orange the last one. Largest distance: ${largest}.`,
      `灰色是目標函數，藍色是 ${pieces.length} 個中 ${shown} 個 sigmoid 的總和，橘色是最後一個。最大誤差：${largest}。`,
    );
  }
  choose();
};
