"""SST-2: is a sentence of a film review positive? GLUE's columns and labels (Socher et al. 2013; Wang et al. 2018)."""

from eval.tasks.text_classification import TextClassification

SST2 = TextClassification(
    name="sst2",
    columns=("sentence",),
    label_column="label",
    head="sequence-classification",
    problem_type="single_label_classification",
    metric_names=("accuracy", "f1"),
    default_data="nyu-mll/glue:sst2",
    default_length=64,
    training_metric="accuracy",
)
