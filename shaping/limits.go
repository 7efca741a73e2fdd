package shaping

// Direction is a direction of traffic, from the pod's view.
type Direction uint8

// The directions.
const (
	Ingress Direction = iota // to the pod
	Egress                   // from the pod
)

// Directions are both.
func Directions() [2]Direction { return [2]Direction{Ingress, Egress} }

// String returns ingress or egress.
func (d Direction) String() string {
	if d == Egress {
		return "egress"
	}
	return "ingress"
}

// BandwidthAnnotation is the key by which a Pod says its rate for a direction, and
// a Namespace the default of its pods. The keys are Kubernetes' own.
func (d Direction) BandwidthAnnotation() string { return "kubernetes.io/" + d.String() + "-bandwidth" }

// BurstAnnotation is the key by which a burst can be given in place of the one that
// follows from the rate.
func (d Direction) BurstAnnotation() string { return "selvage.dev/" + d.String() + "-burst" }

// AnnotationKeys are all keys that mean something here.
func AnnotationKeys() [4]string {
	return [...]string{
		Ingress.BandwidthAnnotation(), Ingress.BurstAnnotation(), Egress.BandwidthAnnotation(), Egress.BurstAnnotation(),
	}
}

// Limit is what one direction is held to. The zero value holds it to nothing.
type Limit struct {
	Rate Rate
	// Burst is a number of bytes that may pass at once after a pause; 0 leaves it
	// to the rate.
	Burst uint32
}

// Limits are the limits of both directions, indexed by Direction.
type Limits [2]Limit

// Any tells whether any direction is limited.
func (l Limits) Any() bool { return l[Ingress].Rate != 0 || l[Egress].Rate != 0 }
