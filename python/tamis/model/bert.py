"""BERT: bidirectional encoder; pooler and task heads stay dense."""

from tamis.model.family import Family

FAMILY = Family(
    name="bert",
    blocks=("BertLayer",),
    linears=("query", "key", "value", "dense"),
    head=("decoder", "classifier", "qa_outputs", "seq_relationship"),
)
