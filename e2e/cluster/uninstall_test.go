package cluster

func (e *env) describeUninstall() {}
