"""Commands and options of other tools: an alias if it is unambiguous, else one line that names ours."""

from __future__ import annotations

ALIASES = {
    "compare": "report",
    "delete": "rm",
    "list": "ls",
    "log": "logs",
    "remove": "rm",
    "run": "sweep",
    "show": "status",
    "start": "sweep",
}
"""Name in another tool -> our command."""
COMMANDS = {
    "agent": "there are no agents: `saebench sweep SPEC` starts its workers itself",
    "clean": "`saebench rm SWEEP` removes a sweep, `saebench cache gc` embeddings",
    "eval": "`saebench report SWEEP` shows the metrics of a sweep",
    "evaluate": "`saebench report SWEEP` shows the metrics of a sweep",
    "kill": "`saebench stop SWEEP --now`",
    "new": "`saebench init` writes a spec",
    "pause": "`saebench stop SWEEP`; `saebench resume SWEEP` resumes it",
    "plot": "`saebench report SWEEP --plot FILE.png`",
    "server": "`saebench ui` starts MLflow's pages",
    "train": "`saebench sweep SPEC` trains what the spec asks for",
}
"""Unknown command -> what to use instead."""
OPTIONS = {
    "--batch-size": "--set train.batch_size=N",
    "--config": "the spec is the argument: saebench sweep SPEC",
    "--device": "--devices LIST",
    "--epochs": "--set train.samples=N: the budget is a number of embeddings",
    "--force": "a sweep is never overwritten: --set name=NAME, or saebench rm SWEEP first",
    "--k": "--set 'sae[0].k=[8, 16]'",
    "--learning-rate": "--set train.lr=X",
    "--lr": "--set train.lr=X",
    "--seed": "--set 'seeds=[0, 1, 2]'",
    "--seeds": "--set 'seeds=[0, 1, 2]'",
    "--verbose": "saebench logs TRIAL shows what a trial printed",
    "--yes": "only rm asks",
    "-v": "saebench logs TRIAL shows what a trial printed",
}
"""Unknown option -> what to use instead."""
