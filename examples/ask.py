"""Ask a host something with OpenAI's client, and show what it says of the routing.

    python examples/ask.py --port 8080 --session s "Is anybody there?"

Needs `pip install openai`; the host needs it not.
"""

from __future__ import annotations

import argparse

from openai import OpenAI


def main() -> None:
    """Ask, print the answer, then the headers that tell what was routed."""
    parser = argparse.ArgumentParser(description="Ask a host something with OpenAI's client.")
    parser.add_argument("question")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--model", default="auto")
    parser.add_argument("--session", default="")
    given = parser.parse_args()
    # A few retries, so that a host may still be starting.
    with OpenAI(base_url=f"http://127.0.0.1:{given.port}/v1", api_key="any key", max_retries=6) as client:
        answer = client.chat.completions.with_raw_response.create(
            model=given.model,
            messages=[{"role": "user", "content": given.question}],
            extra_headers={"x-session-id": given.session},
        )
    print(answer.parse().choices[0].message.content)
    for name, value in answer.headers.items():
        if name.startswith("x-route-"):
            print(f"{name}: {value}")


if __name__ == "__main__":
    main()
