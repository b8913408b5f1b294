// Command peer does GetImage and GetImageContent as PixyProxy does, in Go with grpc-go: HTTP Basic credentials checked by
// a remembered keyed hash, the same query with the same scope over the same kind of connection, the same file in the same
// chunks, and a log line at the start and the end.
package main

import (
	"bufio"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	_ "github.com/go-sql-driver/mysql"
	"golang.org/x/crypto/argon2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "pixyproxy/benchmarks/pb"
)

const (
	poolSize   = 16
	chunkSize  = 64 << 10
	flushEvery = 20 * time.Millisecond
	userQuery  = "SELECT id, password FROM users WHERE username_key = ? AND removed_at IS NULL"
	imageQuery = `SELECT images.guid, users.username, images.filename, images.prompt, images.tags, images.visibility,
  images.content_type, images.size_bytes, images.sha256, images.width, images.height, images.model,
  images.input_tokens, images.output_tokens, images.total_tokens, images.created_at, images.updated_at
FROM images JOIN users ON users.id = images.author_id
WHERE images.guid = ? AND (images.visibility = 2 OR images.author_id = ?)`
)

func main() {
	database, err := sql.Open("mysql", os.Getenv("PEER_DATABASE"))
	if err != nil {
		log.Fatal(err)
	}
	database.SetMaxOpenConns(poolSize)
	database.SetMaxIdleConns(poolSize)
	query, err := database.Prepare(imageQuery)
	if err != nil {
		log.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	peer := &peer{
		database: database, query: query, store: os.Getenv("PEER_STORE"), lines: newLines(), known: newKnown(),
	}
	server := grpc.NewServer(grpc.UnaryInterceptor(peer.aroundCall), grpc.StreamInterceptor(peer.aroundStream))
	pb.RegisterImageServiceServer(server, peer)
	fmt.Printf("listening on %s\n", listener.Addr())
	log.Fatal(server.Serve(listener))
}

type peer struct {
	pb.UnimplementedImageServiceServer
	database *sql.DB
	query    *sql.Stmt
	store    string
	lines    *lines
	known    *known
	calls    atomic.Int64
}

type userKey struct{}

func (p *peer) aroundCall(
	ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler,
) (answer any, err error) {
	err = p.around(ctx, info.FullMethod, func(user int64) error {
		answer, err = handler(context.WithValue(ctx, userKey{}, user), request)
		return err
	})
	return answer, err
}

func (p *peer) aroundStream(
	server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler,
) error {
	return p.around(stream.Context(), info.FullMethod, func(user int64) error {
		return handler(server, &userStream{stream, context.WithValue(stream.Context(), userKey{}, user)})
	})
}

type userStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s *userStream) Context() context.Context { return s.ctx }

func (p *peer) around(ctx context.Context, fullMethod string, call func(user int64) error) error {
	started := time.Now()
	id := fmt.Sprintf("peer-%s-%d", started.Format("20060102T150405.000000"), p.calls.Add(1))
	method := fullMethod[strings.LastIndexByte(fullMethod, '/')+1:]
	p.lines.write(started, id, method, "REQUEST START")
	if err := grpc.SendHeader(ctx, metadata.Pairs("x-request-id", id)); err != nil {
		return err
	}
	user, err := p.authenticate(ctx)
	if err == nil {
		err = call(user)
	}
	ended := time.Now()
	took := float64(ended.Sub(started).Microseconds()) / 1000
	p.lines.write(ended, id, method, fmt.Sprintf("REQUEST END %s %.1f ms", status.Code(err), took))
	return err
}

func (p *peer) GetImage(ctx context.Context, request *pb.GetImageRequest) (*pb.GetImageResponse, error) {
	image, err := p.find(ctx, request.Guid)
	if err != nil {
		return nil, err
	}
	return &pb.GetImageResponse{Image: image}, nil
}

func (p *peer) GetImageContent(
	request *pb.GetImageContentRequest, stream grpc.ServerStreamingServer[pb.GetImageContentResponse],
) error {
	image, err := p.find(stream.Context(), request.Guid)
	if err != nil {
		return err
	}
	file, err := os.Open(filepath.Join(p.store, image.Guid[0:2], image.Guid[2:4], image.Guid))
	if err != nil {
		return status.Error(codes.DataLoss, "The stored bytes of the image are missing.")
	}
	defer file.Close()
	info := &pb.ContentInfo{
		Guid: image.Guid, Filename: image.Filename, ContentType: image.ContentType, SizeBytes: image.SizeBytes,
		Sha256: image.Sha256, Width: image.Width, Height: image.Height,
	}
	if err := stream.Send(&pb.GetImageContentResponse{Info: info}); err != nil {
		return err
	}
	chunk := make([]byte, chunkSize)
	for {
		count, err := file.Read(chunk)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return status.Error(codes.DataLoss, "The stored bytes of the image cannot be read.")
		}
		if err := stream.Send(&pb.GetImageContentResponse{Data: chunk[:count]}); err != nil {
			return err
		}
	}
}

// find returns an image that the caller may see.
func (p *peer) find(ctx context.Context, guid string) (*pb.ImageDetail, error) {
	image := &pb.ImageDetail{}
	var tags []byte
	var visibility int32
	var input, output, total sql.NullInt64
	var created, updated time.Time
	err := p.query.QueryRowContext(ctx, guid, ctx.Value(userKey{})).Scan(
		&image.Guid, &image.Author, &image.Filename, &image.Prompt, &tags, &visibility, &image.ContentType,
		&image.SizeBytes, &image.Sha256, &image.Width, &image.Height, &image.Model, &input, &output, &total,
		&created, &updated)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, status.Error(codes.NotFound, "There is no such image.")
	}
	if err != nil {
		return nil, status.Error(codes.Unavailable, "The database cannot be reached.")
	}
	if err := json.Unmarshal(tags, &image.Tags); err != nil {
		return nil, status.Error(codes.Internal, "The tags cannot be read.")
	}
	image.Visibility = pb.Visibility(visibility)
	image.CreatedAt, image.UpdatedAt = timestamppb.New(created), timestamppb.New(updated)
	if total.Valid {
		image.Usage = &pb.Usage{InputTokens: input.Int64, OutputTokens: output.Int64, TotalTokens: total.Int64}
	}
	return image, nil
}

// --- Credentials ----------------------------------------------------------------------------------------------------

type known struct {
	secret   []byte
	users    sync.Map
	checking sync.Mutex
}

func newKnown() *known {
	secret := make([]byte, 32)
	if _, err := rand.Read(secret); err != nil {
		log.Fatal(err)
	}
	return &known{secret: secret}
}

func (p *peer) authenticate(ctx context.Context) (int64, error) {
	headers := metadata.ValueFromIncomingContext(ctx, "authorization")
	if len(headers) != 1 {
		return 0, status.Error(codes.Unauthenticated, "Sign in.")
	}
	encoded, isBasic := strings.CutPrefix(headers[0], "Basic ")
	text, err := base64.StdEncoding.DecodeString(encoded)
	name, password, hasColon := strings.Cut(string(text), ":")
	if err != nil || !isBasic || !hasColon {
		return 0, status.Error(codes.Unauthenticated, "The credentials cannot be read.")
	}
	digest := hmac.New(sha256.New, p.known.secret)
	digest.Write(text)
	key := [sha256.Size]byte(digest.Sum(nil))
	if user, isKnown := p.known.users.Load(key); isKnown {
		return user.(int64), nil
	}
	// One check takes 64 MiB and a core for a while: the others wait, and mostly find the outcome.
	p.known.checking.Lock()
	defer p.known.checking.Unlock()
	if user, isKnown := p.known.users.Load(key); isKnown {
		return user.(int64), nil
	}
	var id int64
	var hash string
	if err := p.database.QueryRowContext(ctx, userQuery, name).Scan(&id, &hash); err != nil || !isRight(hash, password) {
		return 0, status.Error(codes.Unauthenticated, "The username or the password is wrong.")
	}
	p.known.users.Store(key, id)
	return id, nil
}

// isRight checks a password against $argon2id$v=19$m=…,t=…,p=…$salt$hash.
func isRight(encoded, password string) bool {
	parts := strings.Split(encoded, "$")
	if len(parts) != 6 {
		return false
	}
	var memory, rounds uint32
	var threads uint8
	if _, err := fmt.Sscanf(parts[3], "m=%d,t=%d,p=%d", &memory, &rounds, &threads); err != nil {
		return false
	}
	salt, err := base64.RawStdEncoding.DecodeString(parts[4])
	want, err2 := base64.RawStdEncoding.DecodeString(parts[5])
	if err != nil || err2 != nil {
		return false
	}
	return hmac.Equal(want, argon2.IDKey([]byte(password), salt, rounds, memory, threads, uint32(len(want))))
}

// --- The log --------------------------------------------------------------------------------------------------------

// lines gathers log lines for up to 20 ms, as PixyProxy does.
type lines struct {
	lock   sync.Mutex
	writer *bufio.Writer
}

func newLines() *lines {
	own := &lines{writer: bufio.NewWriterSize(os.Stderr, 1<<16)}
	go func() {
		for range time.Tick(flushEvery) {
			own.lock.Lock()
			own.writer.Flush()
			own.lock.Unlock()
		}
	}()
	return own
}

func (l *lines) write(at time.Time, id, method, text string) {
	line := fmt.Sprintf("%s INFO %s [%d] [%s:%d] %s\n", at.Format("2006-01-02 15:04:05,000"), id, os.Getpid(), method, 1, text)
	l.lock.Lock()
	defer l.lock.Unlock()
	l.writer.WriteString(line)
}
