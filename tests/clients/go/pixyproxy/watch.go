package pixyproxy

import (
	"context"
	"io"

	pb "example.com/client/pixyproxypb"
)

// Watch follows a generation until it has ended, and returns it. A stream that breaks is asked for again, of any server;
// onState and onPartial are called once for each state and each partial image.
func Watch(
	ctx context.Context,
	generations pb.GenerationServiceClient,
	guid string,
	onState func(*pb.Generation),
	onPartial func(image *pb.PartialImage, data []byte),
) (*pb.Generation, error) {
	watch := watch{onState: onState, onPartial: onPartial}
	request := &pb.WatchGenerationRequest{Key: &pb.WatchGenerationRequest_Guid{Guid: guid}}
	for !isFinal(watch.shown.GetState()) {
		_, err := Repeat(ctx, func() (any, error) {
			stream, err := generations.WatchGeneration(ctx, request)
			if err != nil {
				return nil, err
			}
			return nil, watch.read(stream)
		})
		if err != nil {
			return nil, err
		}
	}
	return watch.shown, nil
}

type watch struct {
	onState   func(*pb.Generation)
	onPartial func(image *pb.PartialImage, data []byte)
	shown     *pb.Generation
	nextIndex int32
}

func (w *watch) read(stream pb.GenerationService_WatchGenerationClient) error {
	var image *pb.PartialImage
	var data []byte
	for {
		message, err := stream.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		switch event := message.Event.(type) {
		case *pb.WatchGenerationResponse_Generation:
			now := event.Generation
			if w.shown == nil || now.State != w.shown.State || now.Attempts != w.shown.Attempts {
				w.shown = now
				w.onState(now)
			}
		case *pb.WatchGenerationResponse_PartialImage:
			image, data = event.PartialImage, nil
		case *pb.WatchGenerationResponse_Data:
			data = append(data, event.Data...)
			if int64(len(data)) == image.SizeBytes && image.Index >= w.nextIndex {
				w.nextIndex = image.Index + 1
				w.onPartial(image, data)
			}
		}
	}
}

func isFinal(state pb.GenerationState) bool {
	switch state {
	case pb.GenerationState_GENERATION_STATE_UNSPECIFIED,
		pb.GenerationState_GENERATION_STATE_QUEUED,
		pb.GenerationState_GENERATION_STATE_SUBMITTED:
		return false
	}
	return true
}
