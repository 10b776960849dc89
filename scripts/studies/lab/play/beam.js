// Beam search, step by step. data: source, and lattices of scripts/studies/lab/recorded.py, one a width.
plays.beam = (stage, data) => {
  let lattice = data.lattices.at(-1), shown = 1;

  stage.choice("Beams:", "Beam 數：", data.lattices.map((one, i) => [i, String(one.width), String(one.width)]),
    data.lattices.length - 1, (next) => {
      lattice = data.lattices[next];
      move(shown);
    });
  stage.row();
  const move = (next) => {
    shown = Math.max(1, Math.min(lattice.steps.length, next));
    slider.max = lattice.steps.length;
    slider.set(shown);
    draw();
  };
  stage.button("back", "上一步", () => move(shown - 1));
  stage.button("next word", "下一個字", () => move(shown + 1));
  let stop = () => {};
  stage.button("to the end", "到最後", () => {
    stop();
    stop = animate(() => {
      move(shown + 1);
      return shown < lattice.steps.length;
    }, 300);
  });
  const slider = stage.slider("words", "字數", [1, lattice.steps.length, 1], shown, (value) => { stop(); move(value); });

  const plain = (words) => words.join("").replaceAll("▁", " ").trim();
  /** Words of the beams that go on after so many steps. */
  const beams = (steps) => {
    let found = [[]];
    for (const step of lattice.steps.slice(0, steps)) {
      found = step.filter((one) => one.fate === "goes on").map((one) => [...found[one.from], one.word]);
    }
    return found;
  };
  const high = 46;
  const picture = stage.picture(() => 30 + high * lattice.steps.length, (context, width) => {
    context.textAlign = "center";
    let parents = [[width / 2, 12]];
    context.fillStyle = colour("quiet");
    context.fillText(root.lang === "en" ? "start" : "開始", width / 2, 14);
    lattice.steps.slice(0, shown).forEach((step, depth) => {
      const wide = width / step.length, y = 30 + high * depth + 22, next = [];
      step.forEach((one, i) => {
        const x = wide * (i + 0.5), [px, py] = parents[one.from];
        context.globalAlpha = one.fate === "dropped" ? 0.35 : 1;
        context.strokeStyle = context.fillStyle = colour({ "goes on": "a", ends: "c", dropped: "quiet" }[one.fate]);
        context.lineWidth = one.fate === "dropped" ? 1 : 2;
        context.beginPath();
        context.moveTo(px, py + 4);
        context.bezierCurveTo(px, py + 16, x, y - 26, x, y - 14);
        context.stroke();
        const word = one.word === "</s>" ? "■" : one.word.replace("▁", "␣");
        context.font = wide > 50 ? "14px system-ui, sans-serif" : "12px system-ui, sans-serif";
        context.fillText(word, x, y, wide - 2);
        context.font = "10px system-ui, sans-serif";
        context.fillText(one.score.toFixed(1), x, y + 12, wide - 2);
        context.globalAlpha = 1;
        if (one.fate === "goes on") next.push([x, y + 12]);
      });
      parents = next;
    });
  }, ["A tree of candidate words, a row for each step; the likeliest stand left", "候選字的樹，一列是一步；越左邊機率越高"]);
  picture.press = () => move(shown === lattice.steps.length ? 1 : shown + 1);
  picture.arrow = (dx, dy) => move(shown + (dx + dy || 1));
  const words = stage.words();
  function draw() {
    picture.redraw();
    const last = shown === lattice.steps.length;
    const best = lattice.ends.map((end) => `${plain(end.words)} (${end.score.toFixed(2)})`);
    const open = beams(shown).map(plain).join(" | ");
    const key = ["Blue goes on, green ends (■), grey is dropped; below each word stands the log-probability of all words so far.",
      "藍色繼續，綠色結束（■），灰色捨棄；字下面的數字是到目前為止的對數機率。"];
    const found = last ? [` Found, with the score per word: ${best.join(", ")}.`, ` 找到的句子與每字平均分數：${best.join("、")}。`]
      : [` Kept so far: ${open || "–"}.`, ` 目前保留：${open || "–"}。`];
    words.say(`${data.source} → … ${key[0]}${found[0]}`, `${data.source} → … ${key[1]}${found[1]}`);
  }
  draw();
};
