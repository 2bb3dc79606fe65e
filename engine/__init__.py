"""Everything around a model: data, training, evaluation, records, tables. Imports neither `models` nor `cbam`."""
