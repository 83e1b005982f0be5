import asyncio
import tracemalloc

import pytest

from proxhpc.refine.memo import ENTRY_BYTES, Memo, memo_key


def test_keys_depend_on_the_boundaries_of_parts() -> None:
    assert memo_key(b"ab", b"c") == memo_key(b"ab", b"c")
    assert len({memo_key(b"ab", b"c"), memo_key(b"a", b"bc"), memo_key(b"abc"), memo_key()}) == 4


def test_concurrent_requests_for_a_key_ask_once() -> None:
    memo: Memo[str] = Memo(1 << 20, len)
    asked = []

    async def ask() -> str:
        asked.append(1)
        await asyncio.sleep(0.01)
        return "answer"

    async def main() -> None:
        answers = await asyncio.gather(*(memo.get(b"key", ask) for _ in range(5)))
        assert sorted(answers) == [("answer", False), *[("answer", True)] * 4]
        assert await memo.get(b"key", ask) == ("answer", True)
        assert len(asked) == 1

    asyncio.run(main())


def test_a_failure_is_raised_to_its_caller_only_and_not_stored() -> None:
    memo: Memo[str] = Memo(1 << 20, len)
    turns = iter([ValueError("first"), asyncio.CancelledError(), None])

    async def ask() -> str:
        await asyncio.sleep(0.01)
        if error := next(turns):
            raise error
        return "answer"

    async def main() -> None:
        tasks = [asyncio.ensure_future(memo.get(b"key", ask)) for _ in range(4)]
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(d) for d in done] == [ValueError, asyncio.CancelledError, tuple, tuple]
        assert done[2:] == [("answer", False), ("answer", True)]

    asyncio.run(main())


def test_the_least_recently_used_values_are_removed() -> None:
    memo: Memo[str] = Memo(3 * (ENTRY_BYTES + 1), len)
    asked: list[str] = []

    async def main() -> None:
        for key in "abcadab":

            async def ask(key: str = key) -> str:
                asked.append(key)
                return key

            await memo.get(key.encode(), ask)

    asyncio.run(main())
    assert "".join(asked) == "abcdb"


@pytest.mark.parametrize("size", [10, 1000])
def test_memory_is_bounded(size: int) -> None:
    bound = 1 << 20

    async def main() -> int:
        memo: Memo[bytes] = Memo(bound, len)
        tracemalloc.start()
        for number in range(20_000):

            async def ask(number: int = number) -> bytes:
                return number.to_bytes(4, "big") * (size // 4)

            await memo.get(memo_key(number.to_bytes(4, "big")), ask)
        used, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return used

    assert 0.3 * bound < asyncio.run(main()) < 1.1 * bound
