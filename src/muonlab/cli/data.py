"""`muonlab data prepare`: encode a corpus before training needs it."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from tyro.extras import SubcommandApp

from muonlab.cli.configs import chosen_config, data_notes
from muonlab.cli.options import CacheDir, Data, Overrides, RecipeName

if TYPE_CHECKING:
    from muonlab.data import TokenData

application = SubcommandApp()


@application.command
def prepare(
    recipe_name: RecipeName = "small",
    overrides: Overrides = (),
    *,
    data: Data = (),
    cache_dir: CacheDir = None,
) -> None:
    """Encode a recipe's corpus, or your own text, into the cache, and print what it holds.

    This is optional: training does it when it is needed.
    """
    config = chosen_config(recipe_name, data, overrides, cache_dir)
    corpus = config.data.prepare(cache_dir)
    print_corpus(corpus)
    for note in data_notes(config, corpus):
        Console(markup=False, highlight=False, soft_wrap=True).print(f"note: {note}")


def print_corpus(data: "TokenData") -> None:
    """A table of the splits of a prepared corpus."""
    from muonlab.data.splits import SPLIT_NAMES

    table = Table("split", "documents", "tokens", "bytes/token", title=str(data.directory))
    for split in SPLIT_NAMES:
        table.add_row(
            split,
            f"{data.num_documents(split):,}",
            f"{data.num_tokens(split):,}",
            f"{data.bytes_per_token(split):.2f}",
        )
    console = Console()
    console.print(table)
    console.print(f"vocabulary {data.vocab_size:,} tokens, data hash {data.data_hash[:16]}")
    for warning in data.warnings:
        console.print(f"warning: {warning}", style="bold red")
