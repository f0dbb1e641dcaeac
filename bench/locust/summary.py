"""What a run says about itself: percentiles, rates, and what was lost or came twice. Pure."""

import math

PERCENTILES = (50, 95, 99)


def percentile(values: list[float], percent: float) -> float | None:
    """The smallest value that at least `percent` of the values do not exceed (nearest rank); none without values."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def percentiles(values: list[float]) -> dict:
    """The three of a table, by name."""
    return {f"p{percent}": percentile(values, percent) for percent in PERCENTILES}


def rate(count: int, begin: float, end: float) -> float | None:
    """How many per second; none if that cannot be told from a single moment."""
    return count / (end - begin) if count > 1 and end > begin else None


def faults(sent: set[str], starts: dict[str, int], results: dict[str, set[str]]) -> dict:
    """Counts messages that are lost or doubled.

    `starts` has how often a program began to work on each id, from what all programs wrote; `results` has the distinct
    results of each id. The same result, delivered again, has the same id and does not count. What nobody sent is doubled.
    """
    lost = {id for id in sent if starts.get(id, 0) < 1 or not results.get(id)}
    doubled = sum(max(0, count - 1) for id, count in starts.items() if id in sent)
    doubled += sum(max(0, len(ids) - 1) for id, ids in results.items() if id in sent)
    doubled += len((starts.keys() | results.keys()) - sent)
    return {"lost": len(lost), "doubled": doubled, "examples": sorted(lost)[:5]}


def of_phase(records: list[dict]) -> dict:
    """The figures of one phase of one way, from the records of its messages. Times are seconds since the Unix epoch.

    What is missing from a record (`accepted`, `started`, `result`) has not happened.
    """

    def since_sent(event: str) -> list[float]:
        return [record[event] - record["sent"] for record in records if record.get(event) is not None]

    def per_second(event: str) -> float | None:
        moments = [record[event] for record in records if record.get(event) is not None]
        return rate(len(moments), begin, max(moments)) if moments else None

    begin = min((record["sent"] for record in records), default=0.0)
    return {
        "messages": len(records),
        "acceptedPerSecond": per_second("accepted"),
        "resultsPerSecond": per_second("result"),
        "toAccepted": percentiles(since_sent("accepted")),
        "toStart": percentiles(since_sent("started")),
        "toResult": percentiles(since_sent("result")),
        "refusals": sum(record.get("refusals", 0) for record in records),
    }
