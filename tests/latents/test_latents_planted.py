"""A planted truth: the right latents are found, keywords name the topics, scores tell a trained SAE from an untrained
one and from the floors; and what happens where something is missing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from latents.planted import NAMES, TOPICS, data_config, planted_sae, texts, trial_config, write_trial

from saebench import saes
from saebench.config import BatchTopKConfig, DataConfig, TrialConfig
from saebench.errors import DataError, UserError
from saebench.latents import Encoder, Latents, analyse
from saebench.latents.judge import SAE, SCORES
from saebench.latents.page import page
from saebench.latents.seeds import judged_with_seeds, label_rows, score_rows
from saebench.runs.paths import TrialPaths, cache_dir
from saebench.stores import cache, open_store
from saebench.trial.trainer import Training, train


@pytest.fixture
def found(trial: TrialPaths) -> Latents:
    return analyse(trial.root)


def trained_sae(config: TrialConfig) -> saes.SAE:
    store = open_store(config.data, batch_size=64, seed=0, device="cpu", cache_dir=cache_dir())
    training = Training.start(config.sae, config.train, config.seed, store)
    for _ in train(training, store):
        pass
    training.calibrate()
    return training.sae


def untrained_sae(config: TrialConfig) -> saes.SAE:
    """From random directions: rows of the data, the usual start, already point to topics."""
    store = open_store(config.data, batch_size=64, seed=0, device="cpu", cache_dir=cache_dir())
    sae = saes.make_sae(config.sae.model_copy(update={"start": "random"}), store.d_in, store.sample(500), 0)
    sae.calibrate(store.sample(500))
    return sae


def test_keywords_and_labels_name_the_topic_of_each_latent(found: Latents) -> None:
    for latent, topic in enumerate(NAMES):
        row = found.rows([latent])[0]
        words = row["keywords"].split(", ")
        assert set(words[:5]) <= set(TOPICS[topic]), topic
        assert len(words) >= 5
        assert row["label"] == topic
        assert row["label_share"] > 0.7 > 0.15 > row["label_silent"]
        assert set(row["top"].split()) & set(TOPICS[topic])


def test_the_codes_are_encoded_once_and_kept_beside_the_trial(
    trial: TrialPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = analyse(trial.root).codes
    folder = next((trial.root / "codes").glob("test-*[0-9a-f]"))
    assert json.loads((folder / "codes.json").read_text())["rows"] == first.rows
    monkeypatch.setattr("saebench.saes.base.SAE.encode", lambda *_: pytest.fail("encoded again"))
    assert np.array_equal(analyse(trial.root).codes.dense(), first.dense())


def test_another_sae_or_other_texts_have_codes_of_their_own(
    trial: TrialPaths, config: TrialConfig, tmp_path: Path
) -> None:
    first = analyse(trial.root)
    other = write_trial(tmp_path / "runs", config, planted_sae(seed=1))  # the same directory, other weights
    assert analyse(other.root).trial.digest != first.trial.digest
    assert len(list((trial.root / "codes").glob("test-*/codes.json"))) == 2
    assert analyse(other.root, "train").part.key != first.part.key


def test_a_latent_is_found_again_by_the_seeds_that_have_it(
    trial: TrialPaths, config: TrialConfig, tmp_path: Path
) -> None:
    for seed in (1, 2):
        write_trial(tmp_path / "runs", config.model_copy(update={"seed": seed, "number": seed}), planted_sae(seed))
    write_trial(tmp_path / "runs", config.model_copy(update={"seed": 3, "number": 3, "point": "q"}), planted_sae(3))
    found = analyse(trial.root)
    assert [other.config.seed for other in found.others] == [1, 2]
    share = dict(zip(found.live.tolist(), found.found.tolist(), strict=True))
    assert [share[i] for i in range(8)] == [1.0] * 8
    assert np.mean([share[i] for i in share if i >= 8]) < 0.2


def test_what_two_trials_share_and_what_only_one_has(trial: TrialPaths, config: TrialConfig, tmp_path: Path) -> None:
    other = write_trial(tmp_path / "runs", config.model_copy(update={"number": 1, "point": "q"}), planted_sae(1))
    found = analyse(trial.root, against=other.root)
    rows = {row["latent"]: row for row in found.rows()}
    assert all(rows[i]["against"] == i and rows[i]["against_cosine"] > 0.99 for i in range(8))
    assert min(rows[i]["against_cosine"] for i in rows if i >= 8) < 0.7
    assert 0.2 < found.summary()["shared"] < 1
    assert '"against":"demo/1"' in page(found)


def test_scores_tell_a_trained_sae_from_an_untrained_one_and_from_the_floors(
    config: TrialConfig, tmp_path: Path
) -> None:
    """Trained, untrained, best floor as measured: coherence 0.52, 0.39, 0.42; example_auroc 0.97, 0.93, 0.94;
    label_auroc 1.00, 0.84, 0.83; label_f1 0.86, 0.70, 0.62; label_purity 1.00, 0.81, 0.71. Asked for: about half."""
    least = {"coherence": 0.04, "example_auroc": 0.012, "label_auroc": 0.06, "label_f1": 0.1, "label_purity": 0.09}
    judged = {}
    for number, make in enumerate((trained_sae, untrained_sae)):
        sae = BatchTopKConfig(k=1.33, dict_size=12, preprocess="none", start="data")  # topics per text on average
        recipe = config.train.model_copy(update={"lr": None})  # the default: 125 steps at a lower lr find six topics
        mine = config.model_copy(update={"number": number, "point": f"{number}", "sae": sae, "train": recipe})
        paths = write_trial(tmp_path / "runs", mine, make(mine))
        judged[number] = judged_with_seeds(analyse(paths.root), "second", circular=False)[0]
    for score, gap in least.items():
        trained, untrained = judged[0].values[SAE][score], judged[1].values[SAE][score]
        floors = [judged[0].values[name][score] for name in ("random", "raw", "pca")]
        assert trained > untrained + gap, (score, trained, untrained)
        assert trained > max(floors) + gap, (score, trained, floors)
    assert judged[0].values[SAE]["label_found"] >= 7 / 8
    assert judged[1].values[SAE]["label_found"] <= 4 / 8


def test_every_score_stands_beside_its_floors_with_an_interval_over_seeds(
    trial: TrialPaths, config: TrialConfig, tmp_path: Path
) -> None:
    write_trial(tmp_path / "runs", config.model_copy(update={"seed": 1, "number": 1}), planted_sae(1))
    found = analyse(trial.root)
    judged = judged_with_seeds(found, "second", circular=False)
    rows = {row["score"]: row for row in score_rows(found, judged)}
    assert set(rows) == set(SCORES)
    for score, row in rows.items():
        values = [one.values[SAE][score] for one in judged]
        assert row["value"] == pytest.approx(np.mean(values))
        half = 12.7062 * abs(values[0] - values[1]) / 2  # t(0.975, 1 degree of freedom) * sd / sqrt(2)
        assert row["value_high"] - row["value"] == pytest.approx(half, abs=1e-4)
        assert {"random", "raw", "pca", "above"} <= row.keys()
    assert judged[0].metrics("test/")["test/coherence_random"] == judged[0].values["random"]["coherence"]
    labels = {row["label"]: row for row in label_rows(found, judged[0])}
    assert labels["music"]["latent"] == NAMES.index("music")
    assert labels["music"]["auroc"] > 0.9


@pytest.mark.parametrize("model", ["planted", "a copy of planted"])
def test_the_encoder_of_the_sae_is_refused_as_second_one(trial: TrialPaths, model: str) -> None:
    found = analyse(trial.root)
    with pytest.raises(UserError, match=r"that the SAE was trained on.*Name another encoder"):
        judged_with_seeds(found, model, circular=False)
    assert "example_auroc" in judged_with_seeds(found, model, circular=True)[0].values[SAE]


# --- what is missing -------------------------------------------------------------------------------------------------


def test_without_labels_the_rest_is_shown_and_said(models: None, tmp_path: Path) -> None:  # noqa: ARG001 - a fixture
    data = data_config(tmp_path, texts(300), label_column=None)
    cache.build(data, cache_dir())
    found = analyse(write_trial(tmp_path / "runs", trial_config(data), planted_sae()).root)
    assert any("no labels" in note for note in found.notes)
    assert found.rows()[0]["label"] is None
    scores = {row["score"] for row in score_rows(found, judged_with_seeds(found, None, circular=False))}
    assert scores == {"coherence"}


def test_one_class_is_no_class(models: None, tmp_path: Path) -> None:  # noqa: ARG001 - a fixture
    data = data_config(tmp_path, texts(300), label_column="same")
    cache.build(data, cache_dir())
    found = analyse(write_trial(tmp_path / "runs", trial_config(data), planted_sae()).root)
    assert any("no label has at least ten texts" in note for note in found.notes)
    assert "label_auroc" not in judged_with_seeds(found, None, circular=False)[0].values[SAE]


def test_an_sae_that_never_fires_is_said_to_be_dead(config: TrialConfig, tmp_path: Path) -> None:
    sae = planted_sae()
    with torch.no_grad():
        sae.b_enc.fill_(-1e6)
    found = analyse(write_trial(tmp_path / "runs", config, sae).root)
    assert found.rows() == []
    assert any("no latent fires" in note for note in found.notes)
    assert "No latent fires" in page(found)
    assert found.summary()["live"] == 0
    assert score_rows(found, judged_with_seeds(found, None, circular=False)) == []


def test_fewer_texts_than_deciles(models: None, tmp_path: Path) -> None:  # noqa: ARG001 - a fixture
    data = data_config(tmp_path, texts(20))
    cache.build(data, cache_dir())
    found = analyse(write_trial(tmp_path / "runs", trial_config(data), planted_sae()).root)
    assert found.rows()
    assert page(found)
    assert score_rows(found, judged_with_seeds(found, None, circular=False)) is not None


def test_where_the_texts_are_gone_row_numbers_stand_for_them(
    trial: TrialPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object) -> None:
        raise OSError("gone")

    monkeypatch.setattr("saebench.latents.corpus.texts_of", gone)
    found = analyse(trial.root)
    row = found.rows()[0]
    assert row["keywords"] == ""
    assert row["top"].startswith("(row ")
    assert any("cannot be read" in note for note in found.notes)
    assert "(row " in page(found)
    assert "coherence" not in judged_with_seeds(found, None, circular=False)[0].values[SAE]


def test_a_text_of_a_megabyte_is_one_text_among_others(models: None, tmp_path: Path) -> None:  # noqa: ARG001
    """It is shown by its beginning, its words count once, and a new one like it is encoded."""
    rows = texts(1200)
    long = "river flood " * 90_000
    rows[0] = {**rows[0], "text": long, "label": "water"}
    data = data_config(tmp_path, rows)
    entry = cache.build(data, cache_dir())
    part = "test" if entry.test_index[0] == 0 else "validation" if entry.validation_index[0] == 0 else "train"
    paths = write_trial(tmp_path / "runs", trial_config(data), planted_sae())
    found = analyse(paths.root, part)
    water = found.rows([NAMES.index("water")])[0]
    assert set(water["keywords"].split(", ")[:4]) <= set(TOPICS["water"])
    assert found.by_latent.top(NAMES.index("water"), 1)[0].row == 0, "it fires it most"
    assert water["top"].startswith("river flood river")
    assert len(water["top"]) == 300
    assert len(page(found)) < 2_000_000
    assert Encoder(found.trial).encode([long + "once more"]).counts.tolist() == [2]


def test_where_the_embeddings_are_gone_the_error_says_how_to_go_on(trial: TrialPaths, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="encode the texts again with --build"):
        analyse(trial.root, cache_dir=tmp_path / "elsewhere")
    assert analyse(trial.root, cache_dir=tmp_path / "elsewhere", build=True).rows()


def test_texts_that_have_changed_since_are_not_taken_for_the_old_ones(data: DataConfig, tmp_path: Path) -> None:
    entry = cache.find(data, cache_dir())
    assert entry is not None
    config = trial_config(data).model_copy(update={"cache_key": "0" * 20})
    paths = write_trial(tmp_path / "runs", config, planted_sae())
    with pytest.raises(DataError, match="have changed since"):
        analyse(paths.root, build=True)


def test_a_corpus_without_spaces_has_keywords_of_characters(models: None, tmp_path: Path) -> None:  # noqa: ARG001
    words = ["河流湖泊", "犬狗小犬", "音乐钢琴", "星星月亮", "面包面粉", "法律法官", "树木森林", "市场贸易"]
    rows = [
        {"text": f"{words[i % 8]}{chr(0x4E00 + i)} {TOPICS[NAMES[i % 8]][i % 5]}", "label": NAMES[i % 8]}
        for i in range(400)
    ]
    data = data_config(tmp_path, rows)
    cache.build(data, cache_dir())
    found = analyse(write_trial(tmp_path / "runs", trial_config(data), planted_sae()).root)
    assert any("scripts without spaces" in note for note in found.notes)
    assert "音乐" in found.rows([NAMES.index("music")])[0]["keywords"]


# --- new texts -------------------------------------------------------------------------------------------------------


def test_a_new_text_gets_the_code_that_the_corpus_would_have_given_it(found: Latents) -> None:
    assert found.part.texts is not None
    rows = [3, 17, 40]
    codes = Encoder(found.trial).encode([f"  {found.part.texts[i]}\n" for i in rows])
    assert np.allclose(codes.dense(), found.codes.dense()[rows], atol=1e-6)


def test_a_text_of_nothing_fires_nothing(found: Latents) -> None:
    codes = Encoder(found.trial).encode(["", "river flood canal", " \n"])
    assert codes.counts[[0, 2]].tolist() == [0, 0]
    assert codes.counts[1] > 0
    assert Encoder(found.trial).encode([]).rows == 0


def test_the_texts_that_share_a_code_are_of_its_topic(found: Latents) -> None:
    latents, values = Encoder(found.trial).encode(["river flood canal stream"]).row(0)
    shared = found.sharing(list(zip(latents.tolist(), values.tolist(), strict=True)))
    assert len(shared) == 5
    assert all(set(text.split()) & set(TOPICS["water"]) for text, _ in shared)
    assert [cosine for _, cosine in shared] == sorted((cosine for _, cosine in shared), reverse=True)
