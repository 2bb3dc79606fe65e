"""Everything around a model: data, training, evaluation, checkpoints, records, tables. Independent of architectures."""
