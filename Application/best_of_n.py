# SPDX-License-Identifier: Apache-2.0
"""Best-of-N: how much a process reward model gains by choosing among N candidate answers.

  python3 Application/best_of_n.py --candidates responses.jsonl --prm Gen-Verse/ReasonFlux-PRM-7B --output outputs/bon
  python3 Application/best_of_n.py --candidates scored.jsonl --label-column is_correct --output outputs/bon

  python3 Application/best_of_n.py --prompts test.parquet --policy Qwen/Qwen2.5-7B-Instruct --samples 16 \\
      --prm Gen-Verse/ReasonFlux-PRM-7B --output outputs/bon

Candidates come from a file, a row per problem with lists (`responses`) or a row per response (what score.py writes); or
they are sampled from --policy by verl.trainer.main_generation (into candidates.jsonl).
Scores are in the file or come from --prm. What is right is said by a column of labels, else by the rule scorers of the
rows' data_source. Methods:

  mean             accuracy of a candidate taken at random
  majority         the commonest answer; equal answers by value (1/2 is 0.5), the first seen wins ties
  best of N        the highest score: last, min, mean or product of the step scores, or Eq. 11
  weighted vote    the answer with the greatest sum of scores
  oracle           a right candidate wherever there is one (pass@N)

Accuracy over N = 1, 2, 4, ... is the mean over all subsets of N of the M candidates, which is unbiased (the first N
alone would depend on the order of sampling; --over-n first takes those). Votes go over --max-subsets random subsets
where there are more. At N = M both are the same. Writes results.json, accuracy.png and chosen.jsonl (the choice of each
method on each problem) into --output; with --prm also scored.jsonl, which an interrupted run goes on from.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from prm_tools.accuracy import OVER_N, Ballot, Curve, Method, curves, methods_for
from prm_tools.candidates import (
    KEY,
    LAYOUTS,
    Candidate,
    CandidateColumns,
    Problem,
    find_layout,
    read_candidates,
)
from prm_tools.charts import draw_curves
from prm_tools.program import run_program, show_table, write_json
from prm_tools.sampling import Sampling, sample_candidates
from prm_tools.score_job import ScoreJob, score_file
from prm_tools.scoring import PRMOptions, add_eq11_options, add_prm_options, eq11, eq11_rule
from prm_tools.tables import first_values, write_table
from prm_tools.verdicts import Judgement, judge_by_labels, judge_by_rules

from verl.rewards.credit import CreditRule
from verl.rewards.ranking import AGGREGATIONS, aggregate_steps, answer_key
from verl.utils.errors import UserError

_SHOWN_FAULTS = 5


def sample(args: argparse.Namespace, folder: Path) -> str:
    """Have candidates sampled where prompts are given.

    Args:
        args: Command line.
        folder: Gets candidates.jsonl.

    Returns:
        File of candidates.

    Raises:
        UserError: There is no policy, or sampling was refused.
    """
    if args.candidates is not None:
        return str(args.candidates)
    if args.policy is None:
        raise UserError.for_key("--policy", None, "--prompts needs a model that answers them", "Name its folder")
    if args.samples < 1:
        raise UserError.for_key("--samples", args.samples, "must be at least 1", "Leave it out for 8")
    output = folder / "candidates.jsonl"
    sampling = Sampling(args.prompts, args.problem_column, args.policy, args.samples, args.generate)
    sample_candidates(sampling, output, args.overwrite)
    return str(output)


def score_candidates(
    args: argparse.Namespace, file: str, columns: CandidateColumns, folder: Path
) -> tuple[str, CandidateColumns]:
    """Score all candidates of a file where a PRM is given.

    Args:
        args: Command line.
        file: The file.
        columns: Its columns.
        folder: Gets scored.jsonl.

    Returns:
        The file to go on with, and its columns.
    """
    if args.prm is None:
        return file, columns
    where = find_layout(first_values(file, KEY), file, columns)
    prm = PRMOptions.of(args)
    scored = str(folder / "scored.jsonl")
    job = ScoreJob(
        input=file,
        output=scored,
        columns=where,
        prm=prm,
        rule=eq11_rule(args, prm.score_space),
        prefix=args.prefix,
        overwrite=args.overwrite,
        batch_rows=args.batch_rows,
    )
    report = score_file(job)
    print(f"{report['scored']} of {report['rows']} candidates scored, {report['failed']} failed -> {scored}")
    return scored, replace(columns, layout="long", problem=where.problem, response=where.response)


def build_ballots(
    problems: Sequence[Problem], judged: Sequence[Sequence[Judgement]], aggregations: Sequence[str], rule: CreditRule
) -> list[Ballot]:
    """Put together what choices are made from.

    Args:
        problems: The problems.
        judged: What is known of their candidates.
        aggregations: Names, see `choose_aggregations`.
        rule: alpha and aggregation of Eq. 11.

    Returns:
        A ballot per problem.
    """
    return [
        Ballot(
            keys=tuple(answer_key(judgement.answer) for judgement in judgements),
            correct=tuple(judgement.is_correct for judgement in judgements),
            scores={
                name: tuple(_score(candidate, name, rule) for candidate in problem.candidates) for name in aggregations
            },
        )
        for problem, judgements in zip(problems, judged, strict=True)
    ]


def choose_aggregations(problems: Sequence[Problem], wanted: str | None) -> list[str]:
    """Find out which scores there are.

    Args:
        problems: The problems.
        wanted: Names the user gave, with commas between; None for all that make sense.

    Returns:
        `score` alone where every candidate has one number; else aggregations of step scores, and `Eq. 11` where there
        are trajectory scores; nothing without scores.

    Raises:
        UserError: An unknown aggregation, or a product of numbers that are no probabilities.
    """
    every = [candidate for problem in problems for candidate in problem.candidates]
    steps = [score for candidate in every for score in candidate.step_scores]
    has_whole = any(candidate.traj_score is not None for candidate in every)
    if not steps:
        return []
    if max(len(candidate.step_scores) for candidate in every) == 1 and not has_whole:
        return ["score"]
    names = [{"product": "prod"}.get(name, name) for name in (wanted or ",".join(AGGREGATIONS)).split(",")]
    unknown = [name for name in names if name not in AGGREGATIONS]
    if unknown:
        allowed = f"must be some of {', '.join(AGGREGATIONS)} (or product), with commas between"
        raise UserError.for_key("--aggregations", wanted, allowed, "Correct it")
    are_probabilities = 0.0 <= min(steps) and max(steps) <= 1.0
    if "prod" in names and not are_probabilities:
        if wanted:
            raise UserError.for_key("--aggregations", wanted, "a product needs probabilities", "Leave it out")
        print("the step scores are no probabilities: no product")
        names.remove("prod")
    return [*names, "Eq. 11"] if has_whole else names


def judge(args: argparse.Namespace, problems: Sequence[Problem]) -> list[list[Judgement]]:
    """Find out which candidates are right.

    Args:
        args: Command line.
        problems: The problems.
    """
    if args.label_column is not None:
        return judge_by_labels(problems)
    judged, num_failed = judge_by_rules(problems, args.data_source, args.verifier_workers, args.verifier_timeout_s)
    if num_failed:
        print(f"{num_failed} candidates had no verdict (time limit or error) and count as wrong")
    return judged


def choices(problems: Sequence[Problem], ballots: Sequence[Ballot], methods: Sequence[Method]) -> Iterator[dict]:
    """Say which candidate each method takes of all M.

    Args:
        problems: The problems.
        ballots: Their ballots.
        methods: The methods.

    Yields:
        A row per problem.
    """
    for problem, ballot in zip(problems, ballots, strict=True):
        chosen = {method.name: method.choose(ballot) for method in methods if method.choose is not None}
        yield {
            "problem": problem.text,
            "place": problem.candidates[0].place,
            "candidates": len(ballot.correct),
            "num_correct": sum(ballot.correct),
            "chosen": chosen,
            "is_correct": {name: ballot.correct[place] for name, place in chosen.items()},
        }


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    sources = parser.add_mutually_exclusive_group(required=True)
    sources.add_argument("--candidates", metavar="FILE", help="JSON Lines or parquet with answers")
    sources.add_argument("--prompts", metavar="FILE", help="JSON Lines or parquet without answers: --policy gives them")
    add("--policy", metavar="PATH", help="folder or hub name of the model that answers --prompts")
    add("--samples", type=int, default=8, metavar="N", help="answers per prompt (default: 8)")
    add(
        "--generate",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="further arguments of verl.trainer.main_generation, such as data.max_response_length=2048",
    )
    add("--output", required=True, metavar="FOLDER", help="gets results.json, accuracy.png and chosen.jsonl")
    add("--aggregations", metavar="A,B", help="of step scores: last, min, mean, product (default: all)")
    add("--over-n", choices=OVER_N, default="subsets", help="which N of the M candidates (default: %(default)s)")
    add("--max-subsets", type=int, default=1000, metavar="N", help="per problem and size, for votes (default: 1000)")
    add("--seed", type=int, default=0, help="of the random subsets (default: 0)")
    add("--overwrite", action="store_true", help="score anew, replace scored.jsonl")
    add("--batch-rows", type=int, metavar="N", help="candidates per batch of scoring")
    columns = parser.add_argument_group("columns")
    columns.add_argument("--layout", choices=LAYOUTS, default="auto", help="wide: lists; long: a row per response")
    columns.add_argument("--problem-column", metavar="NAME", help="default: problem, question, prompt or query")
    columns.add_argument("--response-column", metavar="NAME", help="default: responses, response, completion, ...")
    columns.add_argument("--score-column", metavar="NAME", help="a number, or step scores (default: step_scores)")
    columns.add_argument("--answer-column", metavar="NAME", help="final answers (default: taken from the responses)")
    columns.add_argument("--prefix", default="", help="of the columns that score.py adds")
    rules = parser.add_argument_group("what is right")
    rules.add_argument("--label-column", metavar="NAME", help="true or false per response (default: rule scorers)")
    rules.add_argument("--truth-column", metavar="NAME", help="default: reward_model.ground_truth, ground_truth, ...")
    rules.add_argument("--data-source", metavar="NAME", help="rule scorer for all rows (default: each row's own)")
    rules.add_argument("--verifier-workers", type=int, default=2, metavar="N", help="processes (default: 2)")
    rules.add_argument("--verifier-timeout-s", type=float, default=30.0, metavar="S", help="per answer (default: 30)")
    add_eq11_options(parser)
    add_prm_options(parser, is_required=False)
    return parser


def main(args: argparse.Namespace) -> None:
    """Score where asked to, judge, choose, and say how often that was right."""
    if args.max_subsets < 1:
        raise UserError.for_key("--max-subsets", args.max_subsets, "must be at least 1", "Leave it out")
    folder = _make_folder(args.output)
    columns = CandidateColumns(
        layout=args.layout,
        problem=args.problem_column,
        response=args.response_column,
        label=args.label_column,
        answer=args.answer_column,
        score=args.score_column,
        truth=args.truth_column,
        prefix=args.prefix,
    )
    rule = eq11_rule(args, args.score_space)
    given = sample(args, folder)
    found = read_candidates(*score_candidates(args, given, columns, folder))
    _tell_faults(found.faults)
    names = choose_aggregations(found.problems, args.aggregations)
    ballots = build_ballots(found.problems, judge(args, found.problems), names, rule)
    _tell_negative(ballots)
    methods = methods_for(names)
    sizes, by_method = curves(ballots, methods, args.over_n, args.max_subsets, args.seed)
    write_table(folder / "chosen.jsonl", lambda: choices(found.problems, ballots, methods), "--output")
    results = _results(args, ballots, sizes, by_method) | {"input": given, "left_out": found.faults}
    write_json(folder / "results.json", results)
    shown = {name: curve.accuracy for name, curve in by_method.items()}
    title = f"{len(ballots)} problems, {results['candidates']} candidates"
    draw_curves(folder / "accuracy.png", sizes, shown, {method.name: method.style for method in methods}, title)
    rows = [(name, *curve.accuracy, curve.standard_error[-1]) for name, curve in by_method.items()]
    show_table(f"{title}: accuracy over N ({folder})", ("method", *map(str, sizes), "std. error"), rows)


def _make_folder(name: str) -> Path:
    folder = Path(name).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError.for_key("--output", name, f"this folder cannot be made: {error}", "Name another") from error
    return folder


def _score(candidate: Candidate, name: str, rule: CreditRule) -> float:
    if name == "Eq. 11":
        whole = candidate.traj_score
        return eq11(candidate.step_scores, whole, rule) if candidate.step_scores and whole is not None else math.nan
    return aggregate_steps(candidate.step_scores, "last" if name == "score" else name)


def _tell_faults(faults: Sequence[str]) -> None:
    for fault in faults[:_SHOWN_FAULTS]:
        print(f"left out: {fault}")
    if len(faults) > _SHOWN_FAULTS:
        print(f"left out: {len(faults) - _SHOWN_FAULTS} more rows, see results.json")


def _tell_negative(ballots: Sequence[Ballot]) -> None:
    if any(score < 0 for ballot in ballots for scores in ballot.scores.values() for score in scores):
        print("some scores are negative: in a weighted vote they speak against an answer; probabilities vote better")


def _results(
    args: argparse.Namespace, ballots: Sequence[Ballot], sizes: Sequence[int], by_method: dict[str, Curve]
) -> dict[str, Any]:
    counts = sorted({len(ballot.correct) for ballot in ballots})
    unscored = sum(math.isnan(score) for ballot in ballots for score in next(iter(ballot.scores.values()), ()))
    return {
        "problems": len(ballots),
        "candidates": counts[0] if len(counts) == 1 else f"{counts[0]} to {counts[-1]}",
        "unscored_candidates": unscored,
        "judged_by": args.label_column or "rules",
        "prm": args.prm,
        "over_n": args.over_n,
        "max_subsets": args.max_subsets,
        "seed": args.seed,
        "eq11": {"alpha": args.alpha, "aggregation": args.aggregation},
        "n": list(sizes),
        "accuracy": {name: curve.accuracy for name, curve in by_method.items()},
        "standard_error": {name: curve.standard_error for name, curve in by_method.items()},
    }


if __name__ == "__main__":
    sys.exit(run_program(main, build_parser()))
