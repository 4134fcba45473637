"""`dinokit eval TASK`: how good features are, by the field's protocols; on images with a model, or on collections of vectors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dinokit.cli import eval_dense
from dinokit.cli.common import choose_device, say
from dinokit.cli.eval_common import labelled_options, numbers, opened, refuse_existing, report, said, watched_by

if TYPE_CHECKING:
    from dinokit.evals.labelled import Classified
    from dinokit.evals.results import Result


@click.group(no_args_is_help=True)
def command() -> None:
    """Judge features: classification, retrieval, segmentation, depth, video, matching.

    Results go to stdout as a table, or as JSON; published numbers stand below the table and were not measured here.

    \b
    dinokit eval knn imagenet/ -m facebook/dinov2-with-registers-small
    dinokit eval linear train.emb val.emb --labels labels.csv --json
    dinokit eval segmentation ADEChallengeData2016/ --layout ade20k
    """  # fmt: skip


@command.command()
@click.option("--k", "ks", default="10,20,100,200", show_default=True, callback=numbers(int, 0), help="Neighbours.")
@click.option("--temperature", type=click.FloatRange(0, min_open=True), default=0.07, show_default=True)
@click.option("--centred", is_flag=True, help="Take the train set's mean from all vectors first.")
@click.option(
    "--leave-one-out", is_flag=True, help="Judge each train vector by the others; so it is where there is no test set."
)
@labelled_options
def knn(ks: tuple[int, ...], temperature: float, centred: bool, leave_one_out: bool, **options: Any) -> int:
    """Weighted k nearest neighbours, without training. DATA: a folder with train/CLASS and val/CLASS, or one or two collections.

    \b
    dinokit eval knn imagenet/ -m facebook/dinov2-small
    dinokit eval knn photos/ --leave-one-out
    dinokit eval knn train.emb val.emb --labels labels.csv
    """  # fmt: skip
    from dinokit.evals.classify import knn_result

    def judge(found: Classified, device: Any, _: int) -> Result:
        if found.test is None and not leave_one_out:
            say("no test set: each vector is judged by all the others")
        return knn_result(
            found, ks=ks, temperature=temperature, centred=centred, leave_one_out=leave_one_out, device=device
        )

    return _classify(judge, options, divide=False)


@command.command()
@click.option("--steps", type=click.IntRange(1), default=12_500, show_default=True)
@click.option(
    "--batch-size", type=click.IntRange(1), default=128, show_default=True, help="Vectors a step; rates grow with it."
)
@click.option(
    "--blocks", type=click.IntRange(1), default=4, show_default=True, help="Heads on 1 block and on so many last ones."
)
@click.option("--no-mean", is_flag=True, help="Without the heads that read the mean patch too.")
@labelled_options
def linear(steps: int, batch_size: int, blocks: int, no_mean: bool, **options: Any) -> int:
    """Linear probes: 13 learning rates x blocks x tokens, all trained at once on features extracted once.

    The best head is chosen on a tenth of the train set that no head saw. Of images all heads are tried; a collection holds one choice.

    \b
    dinokit eval linear imagenet/ -m facebook/dinov2-with-registers-base --storage /scratch/features
    dinokit eval linear train.emb val.emb --labels labels.csv --steps 2000
    """  # fmt: skip
    from dinokit.evals.classify import linear_result

    def judge(found: Classified, device: Any, seed: int) -> Result:
        return linear_result(
            found, steps=steps, batch_size=batch_size, seed=seed, device=device, watched=watched_by("steps", "step")
        )

    return _classify(judge, options, blocks=blocks, mean=not no_mean)


@command.command()
@click.option(
    "--max-iterations", type=click.IntRange(1), default=1000, show_default=True, help="Of L-BFGS, for each C."
)
@click.option("--fp32", is_flag=True, help="Fit in float32: faster, and for large C less exact.")
@labelled_options
def logreg(max_iterations: int, fp32: bool, **options: Any) -> int:
    """Logistic regression on class tokens; C is chosen among 45 on a tenth of the train set.

    \b
    dinokit eval logreg imagenet/ -m facebook/dinov2-small
    dinokit eval logreg all.emb --labels labels.csv
    """  # fmt: skip
    import torch

    from dinokit.evals.classify import logreg_result

    def judge(found: Classified, device: Any, seed: int) -> Result:
        return logreg_result(
            found,
            seed=seed,
            max_iterations=max_iterations,
            device=device if fp32 or device.type != "mps" else "cpu",  # which has no float64
            dtype=torch.float32 if fp32 else torch.float64,
            watched=watched_by("C", "fit"),
        )

    return _classify(judge, options)


@command.command()
@click.option(
    "--shots", default="1,2,5,10", show_default=True, callback=numbers(int, 0), help="Images a class to learn from."
)
@click.option("--episodes", type=click.IntRange(1), default=10, show_default=True)
@click.option("--ways", type=click.IntRange(2), help="Classes an episode; by default all.")
@labelled_options
def fewshot(shots: tuple[int, ...], episodes: int, ways: int | None, **options: Any) -> int:
    """Few-shot accuracy with its 95 % interval: nearest class mean, and logistic regression.

    \b
    dinokit eval fewshot photos/ --shots 1,5 --episodes 50
    """  # fmt: skip
    from dinokit.evals.classify import few_shot_result

    def judge(found: Classified, _: Any, seed: int) -> Result:
        watched = watched_by("episodes", "episode")
        return few_shot_result(found, shots=shots, episodes=episodes, ways=ways, seed=seed, watched=watched)

    return _classify(judge, options)


@command.command()
@click.option("--k", "ks", default="1,5,10", show_default=True, callback=numbers(int, 0), help="Precision at these.")
@click.option(
    "--ground-truth",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="gnd_*.pkl or .json of revisited Oxford or Paris; DATA is then the folder of their images.",
)
@labelled_options
def retrieval(ks: tuple[int, ...], ground_truth: Path | None, **options: Any) -> int:
    """Mean average precision: by class, or by lists of what each query should find (Easy, Medium, Hard).

    \b
    dinokit eval retrieval photos/
    dinokit eval retrieval oxford5k/jpg --ground-truth gnd_roxford5k.pkl
    """  # fmt: skip
    from dinokit.evals.classify import retrieval_result

    if ground_truth is not None:
        return _landmarks(ks, ground_truth, options)
    return _classify(lambda found, *_: retrieval_result(found, ks=ks), options, divide=False)


def _landmarks(ks: tuple[int, ...], ground_truth: Path, options: dict[str, Any]) -> int:
    from dinokit.evals.landmarks import landmark_result

    data, out = options["data"], options["out"]
    refuse_existing(out, options["overwrite"])
    if len(data) != 1:
        raise click.UsageError("--ground-truth needs one folder of images as DATA.")
    pre, reading = opened(options), {"batch_size": options["batch_images"], "workers": options["workers"]}
    result = said(
        lambda: landmark_result(pre, data[0], ground_truth, ks=ks, watched=watched_by("images", "img"), **reading)
    )
    return report(result, options["as_json"], out)


def _classify(
    judge: Callable[[Classified, Any, int], Result], options: dict[str, Any], *, divide: bool = True, **reading: Any
) -> int:
    """Read DATA, divide it where a test set is needed and missing, judge, report."""
    refuse_existing(options["out"], options["overwrite"])
    data: tuple[Path, ...] = options["data"]
    seed = options["seed"]

    def run() -> Result:
        found = _read_labelled(data, options, reading)
        if divide and found.test is None:
            share = options["test_share"]
            say(f"no test set: judged on a random {share:.0%} of the images (--test-share, --seed)")
            found = found.divided(share, seed)
        return judge(found, choose_device(options["device"]), seed)

    return report(said(run), options["as_json"], options["out"])


def _read_labelled(data: tuple[Path, ...], options: dict[str, Any], reading: dict[str, Any]) -> Classified:
    from dinokit.evals.labelled import from_features, from_images

    if all(path.suffix == ".parquet" or (path.is_dir() and any(path.glob("part-*.parquet"))) for path in data):
        return from_features(data, options["labels"], options["column"])
    if len(data) > 1:
        raise click.UsageError(
            f"{data[0]} and {data[1]} are not both collections; images lie in one folder with train/ and val/."
        )
    if options["labels"] is not None or options["column"] is not None:
        raise click.UsageError("--labels and --column belong to collections; images have the label of their folder.")
    if options["storage"] is not None:
        options["storage"].mkdir(parents=True, exist_ok=True)
    return from_images(
        opened(options),
        data[0],
        devkit=options["devkit"],
        batch_size=options["batch_images"],
        workers=options["workers"],
        storage=options["storage"],
        watched=watched_by("images", "img"),
        **reading,
    )


for _name, _task in eval_dense.COMMANDS.items():
    command.add_command(_task, _name)
