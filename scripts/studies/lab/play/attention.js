// Who looks at whom. data: words that the decoder reads, and scores: {net: [head][step][word]} before mask and softmax.
plays.attention = (stage, data) => {
  const nets = Object.keys(data.scores), length = data.words.length;
  const called = { masked: ["with the mask", "有遮罩"], "not masked": ["without it", "沒有遮罩"] };
  let net = nets.at(-1), head = 0, masked = false, step = Math.floor(length / 2);

  const weights = (row) => {
    const scores = data.scores[net][head][row].map((score, j) => (masked && j > row ? -Infinity : score));
    const top = Math.max(...scores), parts = scores.map((score) => Math.exp(score - top));
    const sum = parts.reduce((a, b) => a + b);
    return parts.map((part) => part / sum);
  };

  stage.choice("Net trained:", "訓練時：", nets.map((name) => [name, ...called[name]]), net, (next) => { net = next; draw(); });
  stage.toggle("mask", "遮罩", masked, (on) => { masked = on; draw(); });
  stage.choice("Head:", "Head：", data.scores[net].map((_, i) => [i, String(i + 1), String(i + 1)]), head, (next) => { head = next; draw(); });
  stage.row();
  const slider = stage.slider("step", "步", [1, length, 1], step + 1, (value) => { step = value - 1; draw(); });

  const top = 120, side = 64;
  const cell = (width) => Math.min(40, (width - side) / length);
  const picture = stage.picture((width) => top + 30 + cell(width) * length, (context, width) => {
    const size = cell(width), at = (j) => side + (j + 0.5) * size;
    context.textAlign = "center";
    const own = weights(step);
    own.forEach((weight, j) => {
      context.strokeStyle = context.fillStyle = colour(j > step ? "b" : "a");
      context.lineWidth = 1 + 9 * weight;
      context.globalAlpha = weight > 0.005 ? 0.25 + 0.75 * weight : 0;
      context.beginPath();
      context.moveTo(at(step), 22);
      context.bezierCurveTo(at(step), 60, at(j), 50, at(j), top - 22);
      context.stroke();
      context.globalAlpha = 1;
      context.font = size > 28 ? "11px system-ui, sans-serif" : "9px system-ui, sans-serif";
      context.fillText(weight >= 0.005 ? weight.toFixed(2).replace(/^0/, "") : "0", at(j), top + 14);
    });
    context.font = "13px system-ui, sans-serif";
    context.fillStyle = colour("ink");
    data.words.forEach((word, j) => context.fillText(word, at(j), top - 6, size - 3));
    context.fillText(root.lang === "en" ? `step ${step + 1}` : `第 ${step + 1} 步`, Math.max(side / 2 + 8, at(step)), 14);
    for (let i = 0; i < length; i++) {
      context.textAlign = "right";
      context.fillStyle = colour(i === step ? "ink" : "quiet");
      context.fillText(root.lang === "en" ? `step ${i + 1}` : `第 ${i + 1} 步`, side - 8, top + 30 + (i + 0.65) * size);
      weights(i).forEach((weight, j) => {
        context.fillStyle = colour(j > i ? "b" : "a");
        context.globalAlpha = weight;
        context.fillRect(side + j * size + 1, top + 26 + i * size + 1, size - 2, size - 2);
        context.globalAlpha = 1;
        context.strokeStyle = colour("line");
        context.strokeRect(side + j * size + 0.5, top + 26 + i * size + 0.5, size - 1, size - 1);
      });
    }
    context.strokeStyle = colour("ink");
    context.lineWidth = 2;
    context.strokeRect(side, top + 26 + step * size, size * length, size);
  }, ["Weights of attention: a row is a step, a column a word; orange are words that come later", "注意力權重：一列是一步，一行是一個字；橘色是之後才出現的字"]);
  const move = (next) => {
    step = Math.max(0, Math.min(length - 1, next));
    slider.set(step + 1);
    draw();
  };
  picture.press = (x, y) => { if (y > top + 26) move(Math.floor((y - top - 26) / cell(picture.canvas.clientWidth))); };
  picture.arrow = (dx, dy) => move(step + dx + dy);
  const words = stage.words();
  function draw() {
    picture.redraw();
    const later = weights(step).slice(step + 1).reduce((a, b) => a + b, 0);
    const share = `${(100 * later).toFixed(0)} %`;
    words.say(
      `Step ${step + 1} must say the next word. ${share} of its attention goes to words that come later (orange).`,
      `第 ${step + 1} 步要說出下一個字。它有 ${share} 的注意力放在之後才出現的字（橘色）。`,
    );
  }
  draw();
};
