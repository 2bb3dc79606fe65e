"""Everything around a model: data, training, evaluation, checkpoints, records, tables. Imports neither `models` nor `cbam`."""
