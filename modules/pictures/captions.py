"""Title of each figure, and how to read it, in English and Chinese: one table for all homeworks and commands."""

from textwrap import wrap
from typing import NamedTuple

from lightning.pytorch.utilities.rank_zero import rank_zero_info
from matplotlib.figure import Figure

from modules.pictures.style import chinese_fonts, families

TITLE, SIZE = 11, 8  # points
LETTER = 0.062  # inches that a Latin letter of this size takes; a Chinese one takes twice as many
NO_FONT = (
    "no font with Chinese letters: figures have English captions only (Debian and Ubuntu: apt install fonts-noto-cjk)"
)


class Caption(NamedTuple):
    """What stands above and below a figure."""

    title: str
    english: str
    chinese: str


CAPTIONS = {
    "loss": Caption(
        "Loss during training",
        "Down is better. val far above train, and rising: the network learns the training rows by heart.",
        "越低越好。驗證損失遠高於訓練損失且持續上升，表示過度擬合。",
    ),
    "accuracy": Caption(
        "Accuracy during training",
        "Up is better. train is counted while the weights still change (with dropout and augmentation).",
        "越高越好。訓練準確率是在更新權重時計算的（含 dropout 與資料增強）。",
    ),
    "bleu": Caption(
        "BLEU during training",
        "Up is better; 0 to 100, of the held-out pairs.",
        "越高越好，範圍 0 到 100，以驗證句對計算。",
    ),
    "gradient_norm": Caption(
        "Norm of the gradient during training",
        "Sudden peaks: steps that go too far. Near 0 while the loss is high: a critical point.",
        "突然的尖峰表示步伐過大；損失仍高而梯度接近 0，表示在臨界點附近。",
    ),
    "learning_rate": Caption(
        "Learning rate of each optimizer step",
        "Warm-up rises, then the schedule falls. Groups of parameters with equal rates share a line.",
        "先暖身上升，再依排程下降；學習率相同的參數組共用一條線。",
    ),
    "predicted_against_true": Caption(
        "Predicted against true values",
        "A point is a held-out row: right on the grey line, too high above it.",
        "每點是一筆驗證資料。落在灰線上表示完全正確，線上方表示預測過高。",
    ),
    "confusion": Caption(
        "Confusion matrix",
        "A row is a true class, a column an answer. Dark off the diagonal: classes that are confused.",
        "列為正確類別，行為預測類別；對角線以外的深色格是容易混淆的類別。",
    ),
    "class_accuracy": Caption(
        "Accuracy by class",
        "Share of each class that is found, worst on top; in brackets the number of samples.",
        "各類別的準確率，最差的在最上面；括號內為樣本數。",
    ),
    "utterance": Caption(
        "One utterance: true and predicted phones",
        "Brighter: more energy. Where the two strips differ, the frames are misjudged.",
        "越亮能量越大；兩條色帶不同之處即判斷錯誤的音框。",
    ),
    "first_filters": Caption(
        "Filters of the first layer",
        "Each is stretched from its lowest weight to its highest. Noise: little was learned yet.",
        "每個濾波器各自拉伸到完整色階；看來像雜訊表示尚未學到東西。",
    ),
    "worst_mistakes": Caption(
        "Worst mistakes", "Wrong answers that the network was surest of; in brackets how sure.",
        "模型最有把握卻答錯的圖片；括號內為它給這個答案的機率。"
    ),
    "features": Caption(
        "Features of held-out images (t-SNE)",
        "A point is an image, a colour a class. Only who is near whom means something; axes have no unit.",
        "每點是一張圖片，顏色代表類別。只有遠近有意義，座標軸沒有單位。",
    ),
    "embeddings": Caption(
        "Embeddings of held-out utterances (t-SNE)",
        "A point is an utterance, a colour a speaker. Only who is near whom means something; axes have no unit.",
        "每點是一段語音，顏色代表語者。只有遠近有意義，座標軸沒有單位。",
    ),
    "grad_cam": Caption(
        "What the answer rests on (Grad-CAM)",
        "Red: raised the score of the answer most. Each image has its own scale.",
        "紅色為對答案貢獻最大的區域；每張圖各自縮放。",
    ),
    "augmentations": Caption(
        "One training image and five augmented versions of it",
        "The class must still be seen in each: else augmentation is too strong.",
        "每張都應仍看得出類別，否則資料增強太強。",
    ),
    "most_confused": Caption(
        "Speakers that are confused most",
        "A row is the true speaker, a column the answer; all others stand in the last row and column.",
        "列為真正的語者，行為預測；其餘語者合併在最後一列與最後一行。",
    ),
    "attention": Caption(
        "Attention, a panel a layer and head",
        "A row says where one place (left) looks among all places (below); bright: much. Rows sum to 1.",
        "每一列表示該位置（左）注意哪些位置（下），越亮越多；每列總和為 1。",
    ),
    "bleu_by_length": Caption(
        "BLEU by length of the source",
        "Falling to the right: long sentences are translated worse. Bars of few sentences are uncertain.",
        "往右下降表示長句翻得較差；句數少的長條不可靠。",
    ),
    "position_similarity": Caption(
        "How alike the vectors of positions are",
        "A red band along the diagonal: neighbours are alike, so that distance can be told.",
        "沿對角線的紅色帶表示相鄰位置相似，因此能分辨距離。",
    ),
    "iterations": Caption(
        "Mask-predict, iteration by iteration",
        "Blue: said anew and changed; grey: said anew and the same; white: kept.",
        "藍色：重新預測且改變；灰色：重新預測但不變；白色：保留。",
    ),
    "runs_diff": Caption(
        "Curves of two runs",
        "Compare at equal steps only where both runs have batches of one size: a step is one batch.",
        "兩次訓練的批次大小相同時，才適合在相同步數下比較：一步就是一個批次。",
    ),
    "importance": Caption(
        "What changed the score of the search",
        "Left: how much of the scores' variance a setting explains. Right: a point is a trial. Few tell little.",
        "左：各超參數能解釋的分數變異比例。右：每點是一次試驗；試驗次數少時不可盡信。",
    ),
}  # fmt: skip


def _lines(text: str, inches: float, letter: float) -> str:
    return "\n".join(wrap(text, max(20, int(inches / letter))))


def explain(name: str, figure: Figure, weights: str = "") -> None:
    """Write title and caption onto a figure, where the table has them.

    Args:
        name: Of the figure; test_ in front does not count.
        figure: To be written on; it grows by what they take, so that its panels keep their size.
        weights: Whose weights drew it.
    """
    caption = CAPTIONS.get(name.removeprefix("test_"))
    if caption is None:
        return
    width = figure.get_figwidth()
    title = _lines(f"{caption.title} [{weights}]" if weights else caption.title, width, 1.45 * LETTER)
    fonts = families()
    text = _lines(caption.english, width, LETTER)
    if chinese_fonts():
        text += "\n" + _lines(caption.chinese, width, 2 * LETTER)
    else:
        _say_once()
    inches = 1.4 * (TITLE * (title.count("\n") + 1) + SIZE * (text.count("\n") + 1)) / 72
    figure.set_figheight(figure.get_figheight() + inches + 0.1)
    figure.suptitle(title, fontsize=TITLE, fontfamily=fonts)
    figure.supxlabel(text, fontsize=SIZE, color="0.3", fontfamily=fonts)


_said = False


def _say_once() -> None:
    global _said
    if not _said:
        _said = True
        rank_zero_info(NO_FONT)
