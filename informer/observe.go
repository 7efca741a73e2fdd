package informer

// Observe are calls that tell metrics what happens. Each may be nil. They must
// return at once, and may be called by several goroutines.
type Observe struct {
	// ManifestErrors is called for each mistake in a manifest when it is found.
	ManifestErrors func(reason Reason)
	// Connected is called when it changes whether the source answers for a
	// kind. Before the first call it has not answered yet. That it does not have
	// a kind which it need not have is an answer.
	Connected func(kind Kind, connected bool)
	// Trouble is called at each failure to list or watch a kind, and with nil
	// when there is none any more. Whoever sets it is to tell of troubles that
	// somebody has to put right; the Logger is told of outages only.
	Trouble func(kind Kind, trouble *Trouble)
}

func (o *Observe) manifestError(reason Reason) {
	if o.ManifestErrors != nil {
		o.ManifestErrors(reason)
	}
}

func (o *Observe) connected(kind Kind, connected bool) {
	if o.Connected != nil {
		o.Connected(kind, connected)
	}
}

func (o *Observe) trouble(kind Kind, t *Trouble) {
	if o.Trouble != nil {
		o.Trouble(kind, t)
	}
}
