"""Everything around a model: data, training, evaluation, checkpoints, records, tables. Knows no architecture."""
