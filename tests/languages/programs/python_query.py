import the0  # a copy of its own, under vendor/


@the0.handler("/status")
def status(params):
    return {"count": the0.get_state("k")["count"], "params": params, "note": "grün €"}


@the0.handler("/write")
def write(_params):
    the0.set_state("k", {"count": 99})


@the0.handler("/boom")
def boom(_params):
    raise ValueError("boom")


the0.run()
