package com.example;

import com.example.pixyproxy.Download;
import com.example.pixyproxy.Refusal;
import com.google.protobuf.FieldMask;
import com.pixyproxy.v1.CreateImageRequest;
import com.pixyproxy.v1.DeleteImageRequest;
import com.pixyproxy.v1.GenerationOptions;
import com.pixyproxy.v1.GetImageContentRequest;
import com.pixyproxy.v1.GetImageRequest;
import com.pixyproxy.v1.GetQuotaRequest;
import com.pixyproxy.v1.ImageDetail;
import com.pixyproxy.v1.ImageServiceGrpc;
import com.pixyproxy.v1.ImageServiceGrpc.ImageServiceBlockingStub;
import com.pixyproxy.v1.ListImagesRequest;
import com.pixyproxy.v1.SummarizeUsageRequest;
import com.pixyproxy.v1.UpdateImageRequest;
import com.pixyproxy.v1.UsageGrouping;
import com.pixyproxy.v1.UsageServiceGrpc;
import com.pixyproxy.v1.UsageServiceGrpc.UsageServiceBlockingStub;
import io.grpc.Channel;
import io.grpc.Deadline;
import io.grpc.Metadata;
import io.grpc.StatusRuntimeException;
import io.grpc.stub.MetadataUtils;
import java.nio.channels.FileChannel;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.UUID;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicReference;
import java.util.function.Consumer;

/** Takes a picture from its creation to its end, and provokes every error that a client can. */
final class Journey {
  private static final Metadata.Key<String> REQUEST_ID =
      Metadata.Key.of("x-request-id", Metadata.ASCII_STRING_MARSHALLER);
  private static final GenerationOptions SMALL = GenerationOptions.newBuilder().setSize("64x64").build();
  private static final int MAX_SIGN_INS = 10;
  private static final int RESUME_OFFSET = 100_000;

  private final Deadline deadline = Deadline.after(1, TimeUnit.MINUTES);
  private final ImageServiceBlockingStub images;
  private final UsageServiceBlockingStub usage;
  private final Path path;
  private final String word;

  Journey(Channel channel, Path folder, String word) {
    this.images = ImageServiceGrpc.newBlockingStub(channel).withDeadline(deadline);
    this.usage = UsageServiceGrpc.newBlockingStub(channel).withDeadline(deadline);
    this.path = folder.resolve("picture.png");
    this.word = word;
  }

  Map<String, ?> run(String others, String damaged) throws Exception {
    var report = new HashMap<String, Object>();
    var request = createRequest();
    var created = create(request);
    report.put("created", describe(created));
    report.put("again", images.createImage(request).getImage().getGuid());

    var headers = new AtomicReference<Metadata>();
    var get = GetImageRequest.newBuilder().setGuid(created.getGuid()).build();
    report.put("got", describe(capturing(images, headers).getImage(get).getImage()));
    report.put("request_id", headers.get().get(REQUEST_ID));
    report.put("pages", list(word));
    var search = ListImagesRequest.newBuilder().setPrompt("lighthouse " + word).build();
    report.put("found", guids(images.listImages(search).getImagesList()));

    report.put("path", path.toString());
    report.put("received", Download.download(images, created.getGuid(), path, deadline));
    try (var file = FileChannel.open(path, StandardOpenOption.WRITE)) {
      file.truncate(RESUME_OFFSET);
    }
    report.put("resumed", Download.download(images, created.getGuid(), path, deadline));

    var update =
        UpdateImageRequest.newBuilder()
            .setGuid(created.getGuid())
            .setFilename("not in the mask.png")
            .addTags("night")
            .setUpdateMask(FieldMask.newBuilder().addPaths("tags"))
            .build();
    report.put("updated", describe(images.updateImage(update).getImage()));
    report.put("refusals", provoke(created, request, others, damaged));
    images.deleteImage(DeleteImageRequest.newBuilder().setGuid(created.getGuid()).build());
    report.put("usage", summarize());
    report.put("quotas", getQuotas());
    return report;
  }

  private List<Map<String, ?>> summarize() {
    var request =
        SummarizeUsageRequest.newBuilder()
            .addGroupBy(UsageGrouping.USAGE_GROUPING_AUTHOR)
            .addGroupBy(UsageGrouping.USAGE_GROUPING_DAY)
            .build();
    var rows = new ArrayList<Map<String, ?>>();
    for (var row : usage.summarizeUsage(request).getRowsList()) {
      rows.add(
          Map.of(
              "author", row.getAuthor(),
              "day", row.getDay(),
              "images", row.getImages(),
              "unknown_outcomes", row.getUnknownOutcomes()));
    }
    return rows;
  }

  private List<Map<String, ?>> getQuotas() {
    var quotas = new ArrayList<Map<String, ?>>();
    for (var quota : usage.getQuota(GetQuotaRequest.getDefaultInstance()).getQuotasList()) {
      quotas.add(
          Map.of(
              "name", quota.getName(),
              "limit", quota.getLimit(),
              "used", quota.getUsed(),
              "resets_at", quota.getResetsAt().getSeconds()));
    }
    return quotas;
  }

  /** Creates and downloads a picture at a server that refuses once what it then does. */
  Map<String, ?> repeats() throws Exception {
    var guid = create(createRequest()).getGuid();
    var received = Download.download(images, guid, path, deadline);
    return Map.of("guid", guid, "path", path.toString(), "received", received);
  }

  private CreateImageRequest createRequest() {
    return CreateImageRequest.newBuilder()
        .setPrompt("A lighthouse in a storm 🌊 " + word + " [[fault:large=300000]]")
        .addTags("sea")
        .addTags("日の出")
        .setRequestId(UUID.randomUUID().toString())
        .setOptions(SMALL)
        .build();
  }

  private ImageDetail create(CreateImageRequest request) throws InterruptedException {
    return Refusal.repeat(deadline, () -> images.createImage(request)).getImage();
  }

  private List<List<String>> list(String tag) {
    var pages = new ArrayList<List<String>>();
    var request = ListImagesRequest.newBuilder().addTags(tag).setPageSize(2);
    do {
      var page = images.listImages(request.build());
      pages.add(guids(page.getImagesList()));
      request.setPageToken(page.getNextPageToken());
    } while (!request.getPageToken().isEmpty());
    return pages;
  }

  private static List<String> guids(List<ImageDetail> images) {
    return images.stream().map(ImageDetail::getGuid).toList();
  }

  static Map<String, ?> describe(ImageDetail image) {
    return Map.of(
        "guid", image.getGuid(),
        "prompt", image.getPrompt(),
        "filename", image.getFilename(),
        "tags", List.copyOf(image.getTagsList()),
        "author", image.getAuthor(),
        "visibility", image.getVisibility().name(),
        "size_bytes", image.getSizeBytes(),
        "sha256", image.getSha256());
  }

  /** Makes a call for each reason that an error can have; returns the errors by the reasons they should have. */
  private Map<String, ?> provoke(ImageDetail image, CreateImageRequest used, String others, String damaged) {
    var nobodysChannel = Program.connect("", "");
    var strangersChannel = Program.connect("stranger-" + word, "a wrong password");
    var asNobody = ImageServiceGrpc.newBlockingStub(nobodysChannel).withDeadline(deadline);
    var asStranger = ImageServiceGrpc.newBlockingStub(strangersChannel).withDeadline(deadline);
    var refusals = new HashMap<String, Object>();

    refusals.put(
        "INVALID_FIELD",
        refused(images, stub -> stub.createImage(CreateImageRequest.newBuilder().setFilename("a/b").build())));
    refusals.put(
        "CREDENTIALS_MISSING",
        refused(
            asNobody,
            stub -> stub.deleteImage(DeleteImageRequest.newBuilder().setGuid(image.getGuid()).build())));
    refusals.put("CREDENTIALS_INVALID", refused(asStranger, Journey::signIn));
    for (var failed = 1; failed < MAX_SIGN_INS; failed++) {
      refused(asStranger, Journey::signIn);
    }
    refusals.put("TOO_MANY_SIGN_INS", refused(asStranger, Journey::signIn));
    refusals.put(
        "NOT_YOURS",
        refused(
            images,
            stub -> stub.updateImage(UpdateImageRequest.newBuilder().setGuid(others).addTags("mine").build())));
    refusals.put(
        "IMAGE_NOT_FOUND",
        refused(
            images,
            stub -> stub.getImage(GetImageRequest.newBuilder().setGuid(new UUID(0, 0).toString()).build())));
    refusals.put(
        "REQUEST_ID_REUSED", refused(images, stub -> stub.createImage(used.toBuilder().setPrompt("another").build())));
    refusals.put("OFFSET_OUT_OF_RANGE", refused(images, reading(image.getGuid(), image.getSizeBytes() + 1)));
    refusals.put("CONTENT_DAMAGED", refused(images, reading(damaged, 0)));
    refusals.put(
        "PROMPT_REFUSED",
        refused(images, creating("[[fault:moderation_blocked:stage=input:categories=violence,hate]]")));
    refusals.put("PROVIDER_RATE_LIMITED", refused(images, creating("[[fault:429:retry-after=3000]]")));
    refusals.put("PROVIDER_QUOTA", refused(images, creating("[[fault:429:code=insufficient_quota]]")));
    refusals.put("PROVIDER_MISCONFIGURED", refused(images, creating("[[fault:401]]")));
    refusals.put("PROVIDER_UNAVAILABLE", refused(images, creating("[[fault:502]]")));
    refusals.put("PROVIDER_TIMEOUT", refused(images, creating("[[fault:504]]")));
    refusals.put("OUTCOME_UNKNOWN", refused(images, creating("[[fault:drop]]")));
    nobodysChannel.shutdownNow();
    strangersChannel.shutdownNow();
    return refusals;
  }

  private static void signIn(ImageServiceBlockingStub stub) {
    stub.listImages(ListImagesRequest.getDefaultInstance());
  }

  private static Consumer<ImageServiceBlockingStub> reading(String guid, long offset) {
    var request = GetImageContentRequest.newBuilder().setGuid(guid).setReadOffset(offset).build();
    return stub -> stub.getImageContent(request).forEachRemaining(message -> {});
  }

  private Consumer<ImageServiceBlockingStub> creating(String prompt) {
    var request = CreateImageRequest.newBuilder().setPrompt(prompt + word).setOptions(SMALL).build();
    return stub -> stub.createImage(request);
  }

  private static Map<String, ?> refused(ImageServiceBlockingStub stub, Consumer<ImageServiceBlockingStub> call) {
    var headers = new AtomicReference<Metadata>();
    try {
      call.accept(capturing(stub, headers));
      return Map.of();
    } catch (StatusRuntimeException error) {
      var refusal = Refusal.of(error);
      return Map.of(
          "code", refusal.code().value(),
          "reason", refusal.reason(),
          "domain", refusal.domain(),
          "metadata", refusal.metadata(),
          "request_id", refusal.requestId(),
          "header_request_id", List.of(headers.get().get(REQUEST_ID)),
          "violations", refusal.violations(),
          "resource", refusal.resource(),
          "quota", refusal.quota(),
          "retry_after", refusal.retryAfter().toMillis() / 1000.0);
    }
  }

  private static ImageServiceBlockingStub capturing(ImageServiceBlockingStub stub, AtomicReference<Metadata> headers) {
    return stub.withInterceptors(MetadataUtils.newCaptureMetadataInterceptor(headers, new AtomicReference<>()));
  }
}
