"""Training on public text: sequences, lazy AdamW, pretraining, co-training, local steps, releases."""
