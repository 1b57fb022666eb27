"""Options of `ray start` in a cluster spec, compared with those of the installed Ray."""

from rayfuse.spec import ray_start


def test_options_are_those_of_ray() -> None:
    from ray.scripts.scripts import start

    of_ray = {option[2:]: parameter for parameter in start.params for option in parameter.opts}
    others = {*ray_start.SET_BY_KUBERAY, *ray_start.SET_BY_OTHER_FIELDS, "labels"}
    assert {*ray_start.OPTIONS, *others} == {name for name in of_ray if name}
    assert not others & {*ray_start.OPTIONS}
    integers = {name for name in of_ray if of_ray[name].type.name == "integer"}
    assert {*ray_start.PORT_OPTIONS, *ray_start.INTEGER_OPTIONS} == integers - others
    flags = {name for name in of_ray if of_ray[name].type.name == "boolean"}
    assert {*ray_start.FLAG_OPTIONS} == flags - others
