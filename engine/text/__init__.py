"""From text to token ids and back: tokenizer, chat templates, text as tokens arrive."""
