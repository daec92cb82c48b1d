"""Characters and token ids: tokenizer, chat templates, pieces of text as tokens come."""
