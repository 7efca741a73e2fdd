package cluster

func (e *env) describeBadInput() {}
