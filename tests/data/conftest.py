import pytest
from invented_corpus import invent_documents, write_jsonl

from muonlab.data import DataConfig, DocumentSplit, LocalConfig, TokenData, TrainBPE


@pytest.fixture(scope="session")
def documents() -> list[str]:
    return invent_documents(200)


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory, documents: list[str]) -> DataConfig:
    path = write_jsonl(tmp_path_factory.mktemp("corpus") / "corpus.jsonl", documents)
    return DataConfig(
        source=LocalConfig(path=path),
        tokenizer=TrainBPE(vocab_size=300),
        split=DocumentSplit(validation_fraction=0.2, test_fraction=0.1),
    )


@pytest.fixture(scope="session")
def data(config: DataConfig, tmp_path_factory: pytest.TempPathFactory) -> TokenData:
    return config.prepare(tmp_path_factory.mktemp("cache"), progress=False)
