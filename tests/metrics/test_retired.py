"""Labels that come and go: whatever happens, no sum falls, nothing is counted twice, and the
number is bounded."""

from collections import Counter as Tally

from hypothesis import given, settings
from hypothesis import strategies as st

from nexus.config import BackendConfig, Config
from nexus.config.overlay import Overlay
from nexus.config.records import Metrics
from nexus.fleet.records import Model
from nexus.health.fleet import Fleet
from nexus.health.prober import ProbeOutcome
from nexus.metrics import families
from nexus.metrics.directory_reader import DirectoryReader
from nexus.metrics.labels import OTHER, RESERVED
from nexus.metrics.store import Store

NAMES = ["a", "a-b", "a_b", "a.b", "other", "retired", "c", "d"]
LIMIT = 6
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("models"), st.sets(st.sampled_from(NAMES), max_size=6)),
        st.tuples(st.just("used"), st.sampled_from(NAMES)),
        st.tuples(st.just("hours"), st.integers(1, 30)),
        st.tuples(st.just("restarted"), st.just(None)),
    ),
    max_size=40,
)


class _Seat:
    slot = 0

    def __init__(self, directory):
        self.metrics = directory


def fleet_of(before=None):
    config = Config(
        backends=[BackendConfig(name="b", url="http://h")],
        metrics=Metrics(max_models=LIMIT, retire_after_hours=24),
    )
    return Fleet(Overlay(file=config), now=0, before=before)


@given(STEPS)
@settings(deadline=None)
def test_whatever_comes_and_goes(tmp_path_factory, steps):
    directory = tmp_path_factory.mktemp("retired")
    store, reader = Store(_Seat(directory)), DirectoryReader(directory)
    fleet, number, hours = fleet_of(), 1, 0
    snapshot = fleet.snapshot(revision=number, now=0)
    children, counted, ever, before = {}, Tally(), {}, Tally()
    for what, given_ in steps:
        if what == "models":
            models = tuple(Model(name=name) for name in sorted(given_))
            fleet.apply_result("b", ProbeOutcome(models, 0.01), now=0)
        elif what == "used" and given_ in fleet._models():
            label = snapshot.labels.models.get(given_, OTHER)
            if label == OTHER:
                fleet.label_models([given_])
            for family, values in (
                (families.REQUESTS, (label, "b", "200")),
                (families.DURATION, (label, "b")),
            ):
                child = children.get((family.name, label))
                if child is None:
                    child = children[family.name, label] = store.child(family, values)
                child.inc() if family is families.REQUESTS else child.observe(0.2)
            counted[label] += 1
        elif what == "hours":
            hours += given_
        elif what == "restarted":
            fleet = fleet_of(before=snapshot)
        fleet.retire_labels(monotonic=hours * 3600.0)
        number += 1
        snapshot = fleet.snapshot(revision=number, now=0)
        labels = snapshot.labels

        for name, label in labels.models.items():
            assert ever.setdefault(label, name) == name, "a label is never given to two names"
        assert len(set(labels.models.values())) == len(labels.models) <= LIMIT
        assert not set(labels.models.values()) & ({*labels.retired_models} | RESERVED)
        assert len(set(labels.retired_models)) == len(labels.retired_models)

        shown = {
            r.layout.name: r for r in reader.read((labels.retired_models, labels.retired_backends))
        }
        requests, durations = Tally(), Tally()
        if families.REQUESTS.name in shown:
            for found, value in shown[families.REQUESTS.name].samples(families.REQUESTS.name):
                assert found["model"] not in requests, "each series is shown once"
                requests[found["model"]] = value
            for found, value in shown[families.DURATION.name].samples(
                f"{families.DURATION.name}_count"
            ):
                durations[found["model"]] = value
        expected = Tally()
        for label, amount in counted.items():
            expected["retired" if label in labels.retired_models else label] += amount
        assert requests == durations == expected
        assert requests["retired"] >= before["retired"]
        before = requests
    store.close()
    reader.close()
