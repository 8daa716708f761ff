"""Text as OpenAI's interface gives it: completions, chats, embeddings, streams."""
