package com.example;

import com.pixyproxy.v1.BatchGetThumbnailsRequest;
import com.pixyproxy.v1.CancelGenerationRequest;
import com.pixyproxy.v1.CreateGenerationRequest;
import com.pixyproxy.v1.CreateImageRequest;
import com.pixyproxy.v1.DeleteImageRequest;
import com.pixyproxy.v1.GenerationServiceGrpc;
import com.pixyproxy.v1.GetGenerationRequest;
import com.pixyproxy.v1.GetImageContentRequest;
import com.pixyproxy.v1.GetImageRequest;
import com.pixyproxy.v1.GetQuotaRequest;
import com.pixyproxy.v1.ImageServiceGrpc;
import com.pixyproxy.v1.ListGenerationsRequest;
import com.pixyproxy.v1.ListImagesRequest;
import com.pixyproxy.v1.SummarizeUsageRequest;
import com.pixyproxy.v1.UpdateImageRequest;
import com.pixyproxy.v1.UsageServiceGrpc;
import com.pixyproxy.v1.WatchGenerationRequest;
import io.grpc.Channel;
import io.grpc.Status;
import io.grpc.StatusException;
import io.grpc.StatusRuntimeException;
import java.util.Map;
import java.util.UUID;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;

/** Makes each call once: what is sent again, gRPC itself sent again. */
final class Calls {
  private Calls() {}

  /** Returns the codes with which the calls ended. */
  static Map<String, ?> calls(Channel channel) throws InterruptedException {
    var images = ImageServiceGrpc.newBlockingStub(channel).withDeadlineAfter(1, TimeUnit.MINUTES);
    var generations = GenerationServiceGrpc.newBlockingStub(channel).withDeadlineAfter(1, TimeUnit.MINUTES);
    var usage = UsageServiceGrpc.newBlockingStub(channel).withDeadlineAfter(1, TimeUnit.MINUTES);
    var guid = UUID.randomUUID().toString();
    var create = CreateImageRequest.newBuilder().setPrompt("a lighthouse").build();
    var get = GetImageRequest.newBuilder().setGuid(guid).build();
    var content = GetImageContentRequest.newBuilder().setGuid(guid).build();
    var update = UpdateImageRequest.newBuilder().setGuid(guid).addTags("sea").build();
    var delete = DeleteImageRequest.newBuilder().setGuid(guid).build();
    var thumbnails = BatchGetThumbnailsRequest.newBuilder().addGuids(guid).build();
    var start = CreateGenerationRequest.getDefaultInstance();
    var found = ListGenerationsRequest.getDefaultInstance();
    var watch = WatchGenerationRequest.getDefaultInstance();
    var cancel = CancelGenerationRequest.getDefaultInstance();
    var summarize = SummarizeUsageRequest.getDefaultInstance();
    var quotas = GetQuotaRequest.getDefaultInstance();

    var calls =
        Map.<String, Runnable>ofEntries(
            Map.entry("CreateImage", () -> images.createImage(create)),
            Map.entry("GetImage", () -> images.getImage(get)),
            Map.entry("ListImages", () -> images.listImages(ListImagesRequest.getDefaultInstance())),
            Map.entry("GetImageContent", () -> images.getImageContent(content).forEachRemaining(message -> {})),
            Map.entry("UpdateImage", () -> images.updateImage(update)),
            Map.entry("DeleteImage", () -> images.deleteImage(delete)),
            Map.entry("BatchGetThumbnails", () -> images.batchGetThumbnails(thumbnails)),
            Map.entry("ImportImage", () -> importNothing(channel)),
            Map.entry("CreateGeneration", () -> generations.createGeneration(start)),
            Map.entry("GetGeneration", () -> generations.getGeneration(GetGenerationRequest.getDefaultInstance())),
            Map.entry("ListGenerations", () -> generations.listGenerations(found)),
            Map.entry("WatchGeneration", () -> generations.watchGeneration(watch).forEachRemaining(message -> {})),
            Map.entry("CancelGeneration", () -> generations.cancelGeneration(cancel)),
            Map.entry("SummarizeUsage", () -> usage.summarizeUsage(summarize)),
            Map.entry("GetQuota", () -> usage.getQuota(quotas)));
    var threads = Executors.newFixedThreadPool(calls.size());
    var ended = new ConcurrentHashMap<String, Integer>();
    calls.forEach((method, call) -> threads.execute(() -> ended.put(method, codeOf(call))));
    threads.shutdown();
    threads.awaitTermination(1, TimeUnit.MINUTES);
    return ended;
  }

  /** A call without a message, whose error is thrown. */
  private static void importNothing(Channel channel) {
    var images = ImageServiceGrpc.newBlockingV2Stub(channel).withDeadlineAfter(1, TimeUnit.MINUTES);
    try {
      var call = images.importImage();
      call.halfClose();
      call.read();
    } catch (InterruptedException | StatusException error) {
      throw Status.fromThrowable(error).asRuntimeException();
    }
  }

  private static int codeOf(Runnable call) {
    try {
      call.run();
      return Status.Code.OK.value();
    } catch (StatusRuntimeException error) {
      return error.getStatus().getCode().value();
    }
  }
}
