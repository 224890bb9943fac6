"""The language model on vLLM, in a process of its own: embeddings go there, tokens and log-probabilities come back.

`load`, `vllm_model`, `asking`, `chooser`, `tries` and `link` are this process's side and never import vllm; `server`,
`vllm_engine`, `architecture` and `held_scores` are the other's, and `plugin` is what vLLM itself looks for.
"""
