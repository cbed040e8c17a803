# The surface of OpenAI's API, as its SDKs use it.

use strict;
use warnings;
use lib 't/lib';
use List::Util qw(sum);
use MIME::Base64 qw(decode_base64);
use RegPilot::Test;
use Test::More;

my $site = RegPilot::Test->new;
my ($key_id, $key) = $site->create_key;
my ($writer_id, $writer) = $site->create_key(permissions => ['gateway:write']);
my ($reader_id, $reader) = $site->create_key(permissions => ['gateway:read']);

my $upstream = $site->start_upstream;
$site->add_upstream('plain', $upstream);
$site->add_routes(
	[ 'fast', 'plain', 'ok', 2 ],
	[ 'fast', 'builtin', 'echo', 1 ],
	[ 'vendor/big model', 'plain', 'ok', 3 ],
	[ 'small-embedding', 'plain', 'embed', 5 ],
	[ 'fast-upstream', 'plain', 'ok', 6 ],
	[ 'odd', 'plain', 'odd-stream', 7 ],
	[ 'no-options', 'plain', 'no-options', 8 ],
	[ 'tools', 'plain', 'tools', 9 ],
	[ 'equal', 'plain', 'ok', 10 ], [ 'equal', 'builtin', 'echo', 10 ],
	[ "na\xc3\xafve", 'plain', 'ok', 4 ]);

# --- models

sub models
{
	my ($path) = @_;
	return $site->get("/v1/models$path", "Authorization: Bearer $reader");
}

sub model
{
	my ($id, $owner) = @_;
	return { id => $id, object => 'model', created => 0, owned_by => $owner };
}

my $answer = models('');
is($answer->{status}, 200, 'models: status');
like($answer->{headers}{'content-type'}, qr{^application/json\b}, 'models: JSON');
is_deeply(
	$answer->{json},
	{
		object => 'list',
		data => [ model('fast', 'builtin'), model('mark-1', 'builtin'), model('vendor/big model', 'plain'),
			model("na\x{ef}ve", 'plain'),
			model('small-embedding', 'plain'), model('fast-upstream', 'plain'),
			map { model($_, 'plain') } qw(odd no-options tools equal) ],
	},
	'models: each alias once, by priority, without tiers and "*"');
is_deeply(models('/' . $_->{id} =~ s/([^a-z-])/sprintf '%%%02X', ord $1/egr)->{json}, $_, "model $_->{id}: the same by itself")
  foreach grep { $_->{id} !~ /\x{ef}/ } @{ $answer->{json}{data} };
is($site->get('/v1/models', "X-API-Key: $writer")->{body}, $body{forbidden}, 'models: ask for gateway:read');
is($site->get('/v1/models')->{body}, $body{missing}, 'models: ask for a key');
is($site->get('/v1/models/fast')->{body}, $body{missing}, 'a model: asks for a key');
is($site->post('/v1/models', {}, "X-API-Key: $key")->{headers}{allow}, 'GET', 'models: GET alone');

foreach my $case (
	[ 'fast' => 'fast', 'builtin' ],
	[ 'fast?x=1' => 'fast', 'builtin' ],
	[ 'vendor/big%20model' => 'vendor/big model', 'plain' ],
	[ 'vendor%2Fbig%20model' => 'vendor/big model', 'plain' ],
	[ '%66%61st' => 'fast', 'builtin' ],
	[ 'na%C3%AFve' => "na\x{ef}ve", 'plain' ],
	[ 'na%c3%afve' => "na\x{ef}ve", 'plain' ],
	# served by the route for "*"
	[ 'any-other/model:1' => 'any-other/model:1', 'builtin' ])
{
	my ($path, @model) = @$case;
	is_deeply(models("/$path")->{json}, model(@model), "model $path");
}
# (nginx itself refuses what is no percent-encoding, and %00)
foreach my $path ('', 'a%0A', '%ff', '%C3', 'x' x 201)
{
	$answer = models("/$path");
	is($answer->{status}, 404, "no model \"$path\"");
	is($answer->{json}{code}, 'MODEL_NOT_FOUND', "no model \"$path\": code");
}
$site->sql(q{DELETE FROM regpilot.route WHERE alias = '*'});
$site->add_routes;
is(models('/any-other')->{json}{code}, 'MODEL_NOT_FOUND', 'without a route for "*": a model that has none itself');
is(models('/fast')->{status}, 200, 'and one that has');

# --- what the client says reaches the upstream as it was written

my $messages = '"messages":[{"role":"user","content":"x"}]';

# What the upstream gets when the client sends these members beside messages.
sub sent
{
	my ($members) = @_;
	my $answer = $site->post('/v1/chat/completions', "{$members,$messages}", "X-API-Key: $key");
	return $answer->{json}{code} // "no code, status $answer->{status}" if $answer->{status} != 200;
	return $site->last_request->{raw};
}

sub ours
{
	my ($members) = @_;
	return qq({"model":"ok","stream":false$members,$messages});
}

my $name = '"model":"fast-upstream"';
foreach my $member (
	(map { qq("number":$_) } '0.1', '-0', '-0.0', '1E+2', '18446744073709551615', '-9223372036854775809',
		'123456789012345678901234567890', '0.1000000000000000055511151231257827021181583404541015625',
		'1.7976931348623157e308', '1e-400', '[0.10,1.0,100]'),
	'"z":1,"a":2,"m":{"z":[ 1 , 2 ],"a":"\u00e9\/\ud83d\ude00\"}"}', '"caf\u00e9":[{"]":"}{"}]', '"":null', '"a":"\\\\"',
	'"tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object","additionalProperties":false}}}]',
	'"x":{"model":"inner","stream":1,"quality":2}', '"seed":1,"seed":2', '"streams":1,"mode":2,"model_":3', '"s":"a\u0000b"')
{
	is(sent("$name,$member"), ours(",$member"), "sent as it came: $member");
}
is(sent(qq( \t\r\n"a" : [ 1 ] ,\n "b":2 , $name , "quality":"cheap","stream" : null)), ours(',"a" : [ 1 ],"b":2'),
	'white space within a member stays');
my $image = 'data:image/png;base64,' . 'A/+=' x 50_000;
my $picture = qq("p":1,"messages":[{"role":"user","content":[{"type":"text","text":"?"},{"type":"image_url","image_url":{"url":"$image","detail":"low"}}]}]);
$answer = $site->post('/v1/chat/completions', "{$name,$picture}", "X-API-Key: $key");
ok($site->last_request->{raw} eq qq({"model":"ok","stream":false,$picture}), 'a picture is sent as it came');

# no other model gets past us, whichever of them a reader would take
foreach my $members (
	qq("model":"evil",$name),
	qq($name,"quality":"frontier","quality":"cheap"),
	qq("mod\\u0065l":"evil",$name),
	qq("stream":true,"\\u0073tream":true,$name,"stream":false),
	qq($name,"Model":"evil","MODEL":"evil","Stream":true,"\xc5\xbftream":true,"\\u017ftream":true,"QUALITY":1))
{
	is(sent($members), ours(''), "our members alone: $members");
}
is(sent(qq($name,"mod\\u0065l":"nobody-knows")), 'MODEL_NOT_FOUND', 'of several the last counts');
foreach my $members (qq($name,"a":1e400), qq($name,"a":-1e400), qq($name,"a\\u0000":1), qq($name,"a":"\\ud800"), qq($name,"a":01),
	qq($name,"a":NaN), qq($name,"a":.5), qq($name,"a":1,), qq($name,,"a":1), qq($name "a":1), qq($name,"a":'x'), qq($name,"a":1\0))
{
	is(sent($members), 'INVALID_JSON', "refused: $members");
}

# --- usage in streams: always asked for, shown to who asked

my %default = ('/api/ai/chat' => [], '/v1/chat/completions' => [ stream => JSON::PP::true ]);
my ($user_id, $user) = $site->create_key(plan => 'growth');

sub streamed
{
	my ($path, %member) = @_;
	return $site->post($path, user_message(@{ $default{$path} }, %member), "X-API-Key: $user");
}

# Tokens of the key so far, once so many requests have been recorded.
my $streamed = 0;
sub tokens
{
	my ($requests) = @_;
	$streamed += $requests;
	wait_until('the outcomes', sub { $site->sql(
		"SELECT count(*) FROM regpilot.request_log WHERE key_id = '$user_id'") == $streamed });
	$site->sql('SELECT regpilot.flush_usage()');
	return $site->sql("SELECT sum(prompt_tokens), sum(completion_tokens) FROM regpilot.key_usage WHERE key_id = '$user_id'");
}

foreach my $path (sort keys %default)
{
	my @before = split /\|/, tokens(0);
	foreach my $options (undef, {}, { include_usage => JSON::PP::false }, { include_usage => undef, other => [7] })
	{
		$answer = streamed($path, model => 'tools', tools => [ { function => { name => 'f' } } ],
			$options ? (stream_options => $options) : ());
		is((events($answer->{body}))[-1], '[DONE]', "$path: a stream");
		unlike($answer->{body}, qr/usage/, "$path: usage that was not asked for is not there");
		is(scalar(grep { !@{ $_->{choices} } } grep { ref } events($answer->{body})), 0, "$path: nor is its chunk");
		is_deeply($site->last_request->{body}{stream_options},
			{ %{ $options // {} }, include_usage => JSON::PP::true }, "$path: but we ask");
	}
	is(tokens(4), ($before[0] // 0) + 4 * 7 . '|' . (($before[1] // 0) + 4 * 5), "$path: and record");

	$answer = streamed($path, model => 'tools', tools => [ { function => { name => 'f' } } ],
		stream_options => { include_usage => JSON::PP::true, other => 1 });
	is_deeply($site->last_request->{body}{stream_options}, { include_usage => JSON::PP::true, other => 1 }, "$path: asked");
	my @chunks = grep { ref } events($answer->{body});
	my $last = pop @chunks;
	is_deeply([ $last->{choices}, $last->{usage} ],
		[ [], { prompt_tokens => 7, completion_tokens => 5, total_tokens => 12 } ], "$path: the chunk of usage");
	is(scalar(grep { exists $_->{usage} && !defined $_->{usage} } @chunks), scalar @chunks, "$path: null in the others");

	# the embedded upstream
	$answer = streamed($path);
	unlike($answer->{body}, qr/usage/, "$path, echo: not asked");
	$answer = streamed($path, stream_options => { include_usage => JSON::PP::true });
	@chunks = grep { ref } events($answer->{body});
	$last = pop @chunks;
	is_deeply([ $last->{choices}, $last->{usage} ],
		[ [], { prompt_tokens => 1, completion_tokens => 1, total_tokens => 2 } ], "$path, echo: the chunk of usage");
	is(scalar(grep { exists $_->{usage} && !defined $_->{usage} } @chunks), scalar @chunks, "$path, echo: null in the others");
	is(tokens(3), ($before[0] // 0) + 5 * 7 + 2 . '|' . (($before[1] // 0) + 5 * 5 + 2), "$path, echo: recorded");

	# what has none passes as it is
	$answer = streamed($path, model => 'odd');
	is($answer->{body}, <<~'EVENTS', "$path: no more is changed than has to be");
		event: chunk
		id: 7
		data: { "choices" : [ {"delta":{"content":"a", "usage":1}} ], "n":1.50 }

		: a comment

		data: {"choices":[],"filter":[1]}

		event: chunk
		data: {"choices":[{"delta":{"content":"b"}}]}
		id: 8

		data: [DONE]

		EVENTS
	$answer = streamed($path, model => 'odd', stream_options => { include_usage => JSON::PP::true });
	like($answer->{body}, qr/^data:\{"choices":\[\],"filter":\[1\],"usage":null\}\n/m, "$path: all of it when asked");
	is(scalar(() = $answer->{body} =~ /\n\n/g), 7, "$path: each event");

	# an upstream that does not know the option
	foreach my $status (400, 422)
	{
		$answer = streamed($path, model => 'no-options', user => "$status");
		is(text_of($answer), 'one two three four five ', "$path: asked again without the option after $status");
		ok(!exists $site->last_request->{body}{stream_options}, "$path: which was not the client's");
	}
	$answer = streamed($path, model => 'no-options', user => '400', stream_options => { include_usage => JSON::PP::true });
	is($answer->{status}, 400, "$path: the client's own is for the client to mend");
	$answer = streamed($path, model => 'no-options', user => '400', stream_options => { other => 1 });
	is($answer->{status}, 400, "$path: and so is that of its own, without ours");
	is_deeply($site->last_request->{body}{stream_options}, { other => 1 }, "$path: as it came");
	tokens(6);

	foreach my $bad ('x', 7, [], JSON::PP::true, { include_usage => 1 }, { include_usage => 'true' })
	{
		is(streamed($path, stream_options => $bad)->{json}{code}, 'INVALID_STREAM_OPTIONS', "$path: bad stream_options");
	}
	tokens(6);
}
is(sent(qq($name,"stream_options":{"include_usage":false})), ours(',"stream_options":{"include_usage":false}'),
	'options of what is no stream are left alone');
sent(qq($name,"stream":true,"stream_options":{"a":0.10,"include_us\\u0061ge":false,"INCLUDE_USAGE":false},"stream_Options":1));
is($site->last_request->{raw},
	qq({"model":"ok","stream":true,"stream_options":{"include_usage":true,"a":0.10},$messages}), 'options in their place');

# --- embeddings

sub embeddings
{
	my ($input, %member) = @_;
	return $site->post('/v1/embeddings', { input => $input, %member }, "Authorization: Bearer $writer");
}

# The vectors of an answer.
sub vectors
{
	my ($answer) = @_;
	return map { $_->{embedding} } @{ $answer->{json}{data} };
}

# How alike two vectors are, from -1 to 1.
sub likeness
{
	my ($one, $other) = @_;
	return sum map { $one->[$_] * $other->[$_] } 0 .. $#$one;
}

$answer = embeddings('The cat sat.', model => 'small-embedding', dimensions => 3, user => 'u');
is($answer->{status}, 200, 'embeddings: status');
is($answer->{headers}{'x-regpilot-model'}, 'plain/embed', 'embeddings: x-regpilot-model');
is_deeply(
	$answer->{json},
	{
		object => 'list',
		model => 'embed',
		data => [ { object => 'embedding', index => 0, embedding => [ 12, 0.25, -1.5 ] } ],
		usage => { prompt_tokens => 3, total_tokens => 3 },
	},
	"embeddings: the upstream's answer as it is");
is($site->last_request->{path}, '/v1/embeddings', 'embeddings: path');
is_deeply($site->last_request->{body}, { input => 'The cat sat.', model => 'embed', dimensions => 3, user => 'u' },
	'embeddings: the body, with the model set');

is($site->post('/v1/embeddings', { input => 'x' }, "X-API-Key: $reader")->{body}, $body{forbidden},
	'embeddings: ask for gateway:write');
foreach my $case (
	[ MISSING_INPUT => '{}', map { qq({"input":$_}) } 'null', '""', '[]', '{}', '7', 'true' ],
	[ INVALID_INPUT => map { qq({"input":$_}) } '["a",7]', '[7,"a"]', '[[]]', '[["a"]]', '[null]', '[{}]', '[[1],[]]' ],
	[ INVALID_MODEL => '{"input":"x","model":7}' ],
	[ INVALID_QUALITY => '{"input":"x","quality":"best"}' ],
	[ INVALID_JSON => '{"input":"x"', '["x"]' ])
{
	my ($code, @bodies) = @$case;
	foreach (@bodies)
	{
		$answer = $site->post('/v1/embeddings', $_, "X-API-Key: $key");
		is("$answer->{status} " . ($answer->{json}{code} // 'none'), "400 $code", "embeddings: $_");
	}
}

# the embedded upstream has real ones
my @texts = ('the cat sat on the mat', 'The cat sat on the mat!', 'a cat sat', 'stock prices fell sharply', '', '!');
$answer = embeddings(\@texts);
is($answer->{headers}{'x-regpilot-model'}, 'builtin/echo', 'echo: embeds too, without a model named');
is($answer->{json}{model}, 'echo', 'echo: model');
is_deeply($answer->{json}{usage}, { prompt_tokens => 20, total_tokens => 20 }, 'echo: usage');
is_deeply([ map { "$_->{object} $_->{index}" } @{ $answer->{json}{data} } ],
	[ map { "embedding $_" } 0 .. 5 ], 'echo: one for each text');
my @vectors = vectors($answer);
is(scalar @{ $vectors[0] }, 256, 'echo: dimensions');
cmp_ok(abs(likeness($_, $_) - 1), '<', 1e-5, 'echo: of length 1') foreach @vectors;
is_deeply($vectors[1], $vectors[0], 'echo: the same words, the same vector');
cmp_ok(likeness($vectors[0], $vectors[2]), '>', likeness($vectors[0], $vectors[3]) + 0.2,
	'echo: texts that share words are nearer to each other');
is_deeply([ vectors(embeddings(\@texts)) ], \@vectors, 'echo: the same again');
is_deeply([ vectors(embeddings($texts[0])) ], [ $vectors[0] ], 'echo: a text by itself');

my ($base64) = vectors(embeddings($texts[0], encoding_format => 'base64'));
my @floats = unpack 'f<*', decode_base64($base64);
is(scalar @floats, 256, 'echo: base64 of 4 bytes a number');
is_deeply([ map { sprintf '%.6f', $_ } @floats ], [ map { sprintf '%.6f', $_ } @{ $vectors[0] } ],
	'echo: base64 is the same vector');
foreach my $dimensions (1, 2, 3, 1536, 2048)
{
	foreach my $format ('float', 'base64')
	{
		my ($vector) = vectors(embeddings('a b c', dimensions => $dimensions, encoding_format => $format));
		$vector = [ unpack 'f<*', decode_base64($vector) ] if $format eq 'base64';
		is(scalar @$vector, $dimensions, "echo: $dimensions dimensions, $format");
		cmp_ok(abs(likeness($vector, $vector) - 1), '<', 1e-5, "echo: $dimensions dimensions, $format: of length 1");
	}
}
my ($tokens) = vectors(embeddings([ 1, 2, 3 ]));
is_deeply([ vectors(embeddings([ [ 1, 2, 3 ], [ 4 ] ])) ]->[0], $tokens, 'echo: tokens, once and in a list');
foreach my $case (
	[ 'x', dimensions => 0 ],
	[ 'x', dimensions => 2049 ],
	[ 'x', dimensions => 'many' ],
	[ 'x', encoding_format => 'int8' ],
	[ 'x', encoding_format => 7 ],
	[ [ ('x') x 2049 ] ],
	[ [ ('x') x 2048 ], dimensions => 2048 ])
{
	$answer = embeddings(@$case);
	is($answer->{status}, 400, 'echo: refuses what is beyond reason');
	ok($answer->{json}{error}{message}, 'echo: in the manner of OpenAI');
}

eval { wait_until('the outcomes', sub { $site->overview($writer_id, 'failed_requests') == 7 }, 10) };
is($site->overview($writer_id, 'failed_requests'), 7, 'embeddings: failures are counted');
is($site->sql("SELECT sum(prompt_tokens), sum(completion_tokens) FROM regpilot.key_usage WHERE key_id = '$writer_id'"),
	(3 + 2 * 20 + 6 + 6 + 10 * 3 + 3 + 4) . '|0', 'embeddings: tokens are recorded');

done_testing();
