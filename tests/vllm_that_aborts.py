"""A module that runs in place of vLLM's process: vLLM's own engine, in which the first request is soon aborted."""

from llava_mini_cli.engine.vllm import server

if __name__ == "__main__":
    take = server.Server.step

    def step(self: server.Server) -> list[server.Said | server.Counted]:
        said = take(self)
        if 0 in self.names:
            self.engine.abort_request([self.names[0]], internal=True)
        return said

    server.Server.step = step
    server.main()
