"""The parts of `compare_objectives.py`: data, model, training, evaluation, table and figures."""
