# The surface of OpenAI's API, as its SDKs use it.

use strict;
use warnings;
use lib 't/lib';
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
			model("na\x{ef}ve", 'plain') ],
	},
	'models: each alias once, by priority, without tiers and "*"');
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

done_testing();
