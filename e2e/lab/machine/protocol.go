package machine

// A machine's init and the program that started it exchange lines of JSON:
// requests on its standard input; answers and exits on its standard output.

// Process says how to start a process on a machine.
type Process struct {
	// Name is what Stop and Exit call it. A machine has one of each name.
	Name string `json:"name"`
	// Argv is the program, by its absolute path, and its arguments.
	Argv []string `json:"argv"`
	// Env is the whole environment.
	Env []string `json:"env,omitempty"`
	// Log is the file that its output is added to, as the machine sees it.
	Log string `json:"log"`
	// Notify says that the process tells when it serves, as services do to
	// systemd: by READY=1 to the socket in NOTIFY_SOCKET. Start waits for it.
	Notify bool `json:"notify,omitempty"`
}

// Exit says that a process ended which was not told to.
type Exit struct {
	Name string `json:"name"`
	// Status is in words, e.g. "exit status 1" or "signal: killed".
	Status string `json:"status"`
}

// The operations of requests.
const (
	opBoot  = "boot"
	opStart = "start"
	opStop  = "stop"
)

// request is a line from the program. The one that follows it does not wait for
// its answer.
type request struct {
	ID      int      `json:"id"`
	Op      string   `json:"op"`
	Boot    *boot    `json:"boot,omitempty"`    // of opBoot
	Process *Process `json:"process,omitempty"` // of opStart
	Name    string   `json:"name,omitempty"`    // of opStop
}

// boot is what the init must know to make a machine of its namespaces.
type boot struct {
	Name string `json:"name"`
	// Disk is the directory that holds /etc, /var/lib, ...
	Disk string `json:"disk"`
	// Hierarchies are those of cgroup v1, as mount takes them: "cpu,cpuacct".
	Hierarchies []string `json:"hierarchies"`
}

// reply is a line from the init: an answer, or an exit.
type reply struct {
	ID    int    `json:"id,omitempty"`
	Error string `json:"error,omitempty"`
	// PID is of opStart: the process's, as the machine sees it.
	PID  int   `json:"pid,omitempty"`
	Exit *Exit `json:"exit,omitempty"`
}
