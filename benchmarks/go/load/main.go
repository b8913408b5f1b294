// Command load calls a server over many connections, one call at a time on each, and prints as JSON how that went.
//
// It writes HTTP/2 frames itself, so that it takes a fraction of the time that the servers take which it measures: one
// write and a read or two for a call. Every answer is checked: its status must be good, and its body not empty.
package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

const (
	maxFrame       = 1 << 20
	window         = 1 << 30
	stalledWindow  = 1<<16 - 1 // what HTTP/2 gives a connection to begin with
	maxConnections = 10_000
)

// A caller makes one call after the other on a connection of its own.
type caller interface {
	// call makes the call number n and returns how many bytes of body came, and when the first of them came.
	call(n int) (int64, time.Time, error)
}

type tally struct {
	latencies  []float64
	firstBytes []float64
	bytes      int64
	refused    int64
	errors     int64
	firstError string
}

type result struct {
	Calls      int64   `json:"calls"`
	Refused    int64   `json:"refused"`
	Errors     int64   `json:"errors"`
	FirstError string  `json:"first_error"`
	Seconds    float64 `json:"seconds"`
	Bytes      int64   `json:"bytes"`
	P50        float64 `json:"p50_ms"`
	P99        float64 `json:"p99_ms"`
	FirstByte  float64 `json:"first_byte_p50_ms"`
	CPUSeconds float64 `json:"cpu_seconds"`
}

func main() {
	address := flag.String("address", "", "host:port of the server")
	method := flag.String("method", "", "the gRPC method, as /package.Service/Method; without one, calls are HTTP/1.1 GETs")
	requests := flag.String("requests", "", "a file with a request a line: the message in hexadecimal, or the path")
	connections := flag.Int("connections", 64, "how many connections")
	seconds := flag.Float64("seconds", 3, "how long to measure")
	warmUp := flag.Float64("warm-up", 1, "how long to call before that")
	rate := flag.Float64("rate", 0, "calls a second of all connections together; 0 calls as fast as answers come")
	stall := flag.Bool("stall", false, "read only the first bytes of each answer, print how many came, and hold on to the end of standard input")
	flag.Parse()
	if *connections < 1 || *connections > maxConnections {
		log.Fatalf("connections must be 1 to %d", maxConnections)
	}
	text, err := os.ReadFile(*requests)
	if err != nil {
		log.Fatal(err)
	}
	// Not an argument, which every process list shows.
	authorization := os.Getenv("LOAD_AUTHORIZATION")
	width := uint32(window)
	if *stall {
		width = stalledWindow
	}
	callers, err := connect(*address, *method, authorization, strings.Fields(string(text)), *connections, width)
	if err != nil {
		log.Fatal(err)
	}
	if *stall {
		fmt.Println(begun(callers))
		io.Copy(io.Discard, os.Stdin)
		return
	}
	// The first calls of a worker check the password, which takes a busy machine seconds. Later ones tell errors, too.
	for _, one := range callers[:min(4, len(callers))] {
		one.call(0)
	}
	begin := time.Now().Add(time.Duration(*warmUp * float64(time.Second)))
	end := begin.Add(time.Duration(*seconds * float64(time.Second)))
	pause := time.Duration(0)
	if *rate > 0 {
		pause = time.Duration(float64(*connections) / *rate * float64(time.Second))
	}
	answer := measure(callers, pause, begin, end)
	if err := json.NewEncoder(os.Stdout).Encode(answer); err != nil {
		log.Fatal(err)
	}
}

func connect(address, method, authorization string, lines []string, count int, width uint32) ([]caller, error) {
	callers := make([]caller, count)
	for i := range callers {
		connection, err := net.Dial("tcp", address)
		if err != nil {
			return nil, err
		}
		if method == "" {
			callers[i] = newHTTPCaller(connection, address, authorization, lines)
		} else if callers[i], err = newGRPCCaller(connection, address, method, authorization, lines, width); err != nil {
			return nil, err
		}
	}
	return callers, nil
}

// measure has all callers call until end; what began before begin is not counted.
func measure(callers []caller, pause time.Duration, begin, end time.Time) result {
	tallies := make([]tally, len(callers))
	var group sync.WaitGroup
	for i, one := range callers {
		group.Add(1)
		go func() {
			defer group.Done()
			// Callers go through the requests from different places on.
			time.Sleep(pause * time.Duration(i) / time.Duration(len(callers)))
			tallies[i] = callUntil(one, i*7919, pause, begin, end)
		}()
	}
	time.Sleep(time.Until(begin))
	cpuBefore := cpuSeconds()
	group.Wait()
	return summed(tallies, end.Sub(begin).Seconds(), cpuSeconds()-cpuBefore)
}

// callUntil counts a call that begins late from when it should have begun: a slow server must not thin out its own load.
func callUntil(one caller, n int, pause time.Duration, begin, end time.Time) tally {
	var own tally
	due := time.Now()
	for {
		started := time.Now()
		if pause > 0 {
			time.Sleep(time.Until(due))
			started = due
			due = due.Add(pause)
		}
		if started.After(end) {
			return own
		}
		count, first, err := one.call(n)
		n++
		ended := time.Now()
		if errors.Is(err, exhausted) {
			if ended.After(begin) && ended.Before(end) {
				own.refused++
			}
		} else if err != nil {
			own.errors++
			own.firstError = err.Error()
			// A refused call leaves its connection in order, a broken connection does not.
			if !errors.As(err, new(refusal)) {
				return own
			}
		} else if ended.After(begin) && ended.Before(end) {
			own.latencies = append(own.latencies, milliseconds(ended.Sub(started)))
			own.firstBytes = append(own.firstBytes, milliseconds(first.Sub(started)))
			own.bytes += count
		}
	}
}

// begun begins a call on each connection and returns how many of them gave data; more is not read.
func begun(callers []caller) int {
	var group sync.WaitGroup
	var count atomic.Int64
	for _, one := range callers {
		group.Add(1)
		go func() {
			defer group.Done()
			if one.(*grpcCaller).begin() == nil {
				count.Add(1)
			}
		}()
	}
	group.Wait()
	return int(count.Load())
}

func summed(tallies []tally, seconds, cpu float64) result {
	answer := result{Seconds: seconds, CPUSeconds: cpu}
	var latencies, firstBytes []float64
	for _, one := range tallies {
		latencies = append(latencies, one.latencies...)
		firstBytes = append(firstBytes, one.firstBytes...)
		answer.Bytes += one.bytes
		answer.Refused += one.refused
		answer.Errors += one.errors
		if answer.FirstError == "" {
			answer.FirstError = one.firstError
		}
	}
	answer.Calls = int64(len(latencies))
	answer.P50, answer.P99 = percentile(latencies, 0.5), percentile(latencies, 0.99)
	answer.FirstByte = percentile(firstBytes, 0.5)
	return answer
}

func percentile(values []float64, share float64) float64 {
	if len(values) == 0 {
		return 0
	}
	slices.Sort(values)
	return values[int(share*float64(len(values)-1))]
}

func milliseconds(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e6 }

func cpuSeconds() float64 {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		log.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano()).Seconds()
}

// A refusal is an answer that is an error.
type refusal string

func (r refusal) Error() string { return string(r) }

// exhausted is gRPC's RESOURCE_EXHAUSTED: the server refuses the call because it is too busy.
const exhausted = refusal("gRPC status 8")

// --- gRPC -----------------------------------------------------------------------------------------------------------

type grpcCaller struct {
	connection net.Conn
	framer     *http2.Framer
	writes     *bufio.Writer
	headers    []hpack.HeaderField
	encoder    *hpack.Encoder
	encoded    bytes.Buffer
	messages   [][]byte
	stream     uint32
	received   uint32
}

func newGRPCCaller(connection net.Conn, address, method, authorization string, lines []string, width uint32) (*grpcCaller, error) {
	one := &grpcCaller{connection: connection, writes: bufio.NewWriter(connection), stream: 1}
	one.framer = http2.NewFramer(one.writes, bufio.NewReaderSize(connection, maxFrame))
	one.framer.SetMaxReadFrameSize(maxFrame)
	one.framer.SetReuseFrames()
	one.framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	one.encoder = hpack.NewEncoder(&one.encoded)
	one.headers = []hpack.HeaderField{
		{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "http"}, {Name: ":path", Value: method},
		{Name: ":authority", Value: address}, {Name: "te", Value: "trailers"},
		{Name: "content-type", Value: "application/grpc"},
	}
	if authorization != "" {
		one.headers = append(one.headers, hpack.HeaderField{Name: "authorization", Value: authorization})
	}
	for _, line := range lines {
		message, err := hex.DecodeString(line)
		if err != nil {
			return nil, err
		}
		// Each message is preceded by whether it is compressed, and by its length.
		frame := binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message)))
		one.messages = append(one.messages, append(frame, message...))
	}
	if _, err := one.writes.WriteString(http2.ClientPreface); err != nil {
		return nil, err
	}
	settings := []http2.Setting{
		{ID: http2.SettingInitialWindowSize, Val: width},
		{ID: http2.SettingMaxFrameSize, Val: maxFrame},
		{ID: http2.SettingEnablePush, Val: 0},
	}
	if err := one.framer.WriteSettings(settings...); err != nil {
		return nil, err
	}
	if width > stalledWindow {
		if err := one.framer.WriteWindowUpdate(0, width-stalledWindow); err != nil {
			return nil, err
		}
	}
	// A server waits for this only so long, and thousands of connections take a while to open.
	return one, one.writes.Flush()
}

func (c *grpcCaller) call(n int) (int64, time.Time, error) {
	stream, err := c.send(n)
	if err != nil {
		return 0, time.Time{}, err
	}
	return c.answer(stream)
}

// begin makes the first call and reads until data comes.
func (c *grpcCaller) begin() error {
	stream, err := c.send(0)
	for err == nil {
		var frame http2.Frame
		if frame, err = c.framer.ReadFrame(); err != nil {
			break
		}
		switch frame := frame.(type) {
		case *http2.DataFrame:
			return nil
		case *http2.MetaHeadersFrame:
			if frame.StreamEnded() {
				return grpcError(frame, 0)
			}
		default:
			err = c.serve(frame, stream)
		}
	}
	return err
}

// send sends the request number n and returns the stream that it is on.
func (c *grpcCaller) send(n int) (uint32, error) {
	c.encoded.Reset()
	for _, header := range c.headers {
		if err := c.encoder.WriteField(header); err != nil {
			return 0, err
		}
	}
	stream := c.stream
	c.stream += 2
	parameters := http2.HeadersFrameParam{StreamID: stream, BlockFragment: c.encoded.Bytes(), EndHeaders: true}
	if err := c.framer.WriteHeaders(parameters); err != nil {
		return 0, err
	}
	if err := c.framer.WriteData(stream, true, c.messages[n%len(c.messages)]); err != nil {
		return 0, err
	}
	return stream, c.writes.Flush()
}

// answer reads frames until the stream has ended.
func (c *grpcCaller) answer(stream uint32) (int64, time.Time, error) {
	var count int64
	var first time.Time
	for {
		frame, err := c.framer.ReadFrame()
		if err != nil {
			return 0, first, err
		}
		switch frame := frame.(type) {
		case *http2.DataFrame:
			if count == 0 {
				first = time.Now()
			}
			count += int64(len(frame.Data()))
			if err := c.widen(frame.Length); err != nil {
				return 0, first, err
			}
		case *http2.MetaHeadersFrame:
			if frame.StreamEnded() {
				return count, first, grpcError(frame, count)
			}
		default:
			if err := c.serve(frame, stream); err != nil {
				return 0, first, err
			}
		}
	}
}

// serve does what frames beside an answer ask for.
func (c *grpcCaller) serve(frame http2.Frame, stream uint32) error {
	switch frame := frame.(type) {
	case *http2.SettingsFrame:
		if !frame.IsAck() {
			return errors.Join(c.framer.WriteSettingsAck(), c.writes.Flush())
		}
	case *http2.PingFrame:
		if !frame.IsAck() {
			return errors.Join(c.framer.WritePing(true, frame.Data), c.writes.Flush())
		}
	case *http2.GoAwayFrame:
		return fmt.Errorf("the server is going away: %v", frame.ErrCode)
	case *http2.RSTStreamFrame:
		if frame.StreamID == stream {
			return refusal(frame.ErrCode.String())
		}
	}
	return nil
}

// widen gives the connection's window back before it is half used up; a stream never uses up its own.
func (c *grpcCaller) widen(count uint32) error {
	c.received += count
	if c.received < window/2 {
		return nil
	}
	count, c.received = c.received, 0
	return errors.Join(c.framer.WriteWindowUpdate(0, count), c.writes.Flush())
}

func grpcError(frame *http2.MetaHeadersFrame, count int64) error {
	var status, message string
	for _, field := range frame.Fields {
		switch field.Name {
		case "grpc-status":
			status = field.Value
		case "grpc-message":
			message = field.Value
		}
	}
	if status == "8" {
		return exhausted
	}
	if status != "0" {
		return refusal(fmt.Sprintf("gRPC status %s: %s", status, message))
	}
	if count == 0 {
		return refusal("the answer is empty")
	}
	return nil
}

// --- HTTP/1.1 -------------------------------------------------------------------------------------------------------

type httpCaller struct {
	connection net.Conn
	reads      *bufio.Reader
	requests   [][]byte
}

func newHTTPCaller(connection net.Conn, address, authorization string, lines []string) *httpCaller {
	one := &httpCaller{connection: connection, reads: bufio.NewReader(connection)}
	for _, line := range lines {
		request := fmt.Sprintf("GET %s HTTP/1.1\r\nHost: %s\r\nAuthorization: %s\r\n\r\n", line, address, authorization)
		one.requests = append(one.requests, []byte(request))
	}
	return one
}

func (c *httpCaller) call(n int) (int64, time.Time, error) {
	if _, err := c.connection.Write(c.requests[n%len(c.requests)]); err != nil {
		return 0, time.Time{}, err
	}
	answer, err := http.ReadResponse(c.reads, nil)
	if err != nil {
		return 0, time.Time{}, err
	}
	defer answer.Body.Close()
	first := time.Now()
	count, err := io.Copy(io.Discard, answer.Body)
	if err == nil && (answer.StatusCode != http.StatusOK || count == 0) {
		err = refusal(answer.Status)
	}
	return count, first, err
}
