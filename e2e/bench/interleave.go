package bench

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"
)

// maxFlows is how many conntrack entries one node may hold before all nodes
// forget theirs: the table must not fill, nor its chains grow long.
const maxFlows = 8192

// Subject is one world under measurement: one of several replicas of a variant.
type Subject struct {
	Variant string
	Triple  *Triple

	ends  *ends
	flows int
}

// Series are the figures of one Subject under one Load.
type Series struct {
	Variant string `json:"variant"`
	// Nanos has one figure per round: the wall time of one operation, averaged
	// over the batch. Index i of all series of a run belongs to the same moment.
	Nanos []float64 `json:"nanosPerOperation"`
}

// Interleave puts the load on all subjects in turn, one batch each in a random
// order, round after round for the given time, so that whatever else the
// machine does hits all of them alike. It needs root, for priority.
func Interleave(subjects []*Subject, load Load, length time.Duration) ([]Series, error) {
	series := make([]Series, len(subjects))
	for i, s := range subjects {
		series[i].Variant = s.Variant
		var err error
		if s.ends, err = load.open(s.Triple); err != nil {
			return nil, fmt.Errorf("%s: %w", s.Variant, err)
		}
	}
	err := onThread(func() error {
		if err := undisturbed(); err != nil {
			return err
		}
		defer debug.SetGCPercent(debug.SetGCPercent(-1))
		return rounds(subjects, load, length, series)
	})
	for _, s := range subjects {
		err = errors.Join(err, s.ends.close(), s.Triple.FlushConntrack())
		s.ends, s.flows = nil, 0
	}
	if err != nil {
		return nil, err
	}
	return series, nil
}

// undisturbed keeps the calling thread on one processor (a migration costs more
// than a batch) and before all others.
func undisturbed() error {
	var cpus unix.CPUSet
	cpus.Set(runtime.NumCPU() - 1)
	if err := unix.SchedSetaffinity(0, &cpus); err != nil {
		return fmt.Errorf("stay on one processor: %w", err)
	}
	if err := unix.Setpriority(unix.PRIO_PROCESS, 0, -20); err != nil {
		return fmt.Errorf("raise the priority: %w", err)
	}
	return nil
}

func rounds(subjects []*Subject, load Load, length time.Duration, series []Series) error {
	const warmUp = 20
	n := load.batch()
	order := make([]int, len(subjects))
	for i := range order {
		order[i] = i
	}
	// A fixed seed: two runs differ by the machine alone.
	rng := rand.New(rand.NewPCG(1, 2))
	start := time.Now()
	for round := 0; round <= warmUp || time.Since(start) < length; round++ {
		if round == warmUp {
			start = time.Now()
		}
		rng.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
		for _, i := range order {
			s := subjects[i]
			took, err := s.batch(n)
			if err != nil {
				return fmt.Errorf("%s: %w", s.Variant, err)
			}
			if round >= warmUp {
				series[i].Nanos = append(series[i].Nanos, float64(took.Nanoseconds())/float64(n))
			}
		}
		if err := forget(subjects, load); err != nil {
			return err
		}
	}
	return nil
}

// batch does one untimed operation, which fetches this world's code and data
// into the processor's caches, and n timed ones.
func (s *Subject) batch(n int) (time.Duration, error) {
	if err := s.ends.prepare(n + 1); err != nil {
		return 0, err
	}
	if _, err := s.ends.run(1); err != nil {
		return 0, err
	}
	s.flows += (n + 1) * s.ends.load.flows()
	return s.ends.run(n)
}

func forget(subjects []*Subject, load Load) error {
	if load.flows() == 0 || subjects[0].flows < maxFlows {
		return nil
	}
	for _, s := range subjects {
		if err := s.Triple.FlushConntrack(); err != nil {
			return err
		}
		s.flows = 0
	}
	return nil
}
